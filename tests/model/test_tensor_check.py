"""Tensors of a checkpoint against those of the model: what is missing, has another shape or dtype, or is not used."""

from dataclasses import replace

import pytest
import torch

from bigcircuit.check import check_config
from bigcircuit.config.schema import Config, ModelConfig
from bigcircuit.errors import UserError
from bigcircuit.model.load import load_frozen
from bigcircuit.model.resolve import resolve_model
from tests.helpers.broken_models import changed_model, in_shards, json_values, tensors
from tests.helpers.short_runs import run
from tests.helpers.tiny_models import TINY_CASES, tiny_model

UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"
ASKED = "which config.json asks for and random numbers would stand in for; give the config.json that these weights"
CASES = {
    "untied": (json_values("config.json", tie_word_embeddings=False), f"model.safetensors lacks lm_head.weight, {ASKED}"),
    "missing": (tensors(lambda found: found.pop(NORM)), f"model.safetensors lacks {NORM}, {ASKED}"),
    "layers": (
        json_values("config.json", num_hidden_layers=6),
        f"model.safetensors lacks model.layers.4.input_layernorm.weight and 17 more, {ASKED}",
    ),
    "none": (tensors(dict.clear), f"model.safetensors lacks lm_head.weight and 38 more, {ASKED}"),
    "architecture": (json_values("config.json", model_type="phi3"), "lacks model.layers.0.mlp.gate_up_proj.weight and 7 more"),
    "shape": (
        tensors(lambda found: found.update({UP: found[UP][:-1].clone()})),
        f"model.safetensors has {UP} of 319 x 128, and config.json asks for 320 x 128; give the config.json that",
    ),
    "vocabulary": (json_values("config.json", vocab_size=1000), "embed_tokens.weight of 1030 x 128, and config.json asks for 1000"),
    "int8": (
        tensors(lambda found: found.update({UP: found[UP].to(torch.int8)})),
        f"model.safetensors has {UP} in a dtype that needs scales, and config.json has no quantization_config; give the model",
    ),
    "float8": (tensors(lambda found: found.update({UP: found[UP].to(torch.float8_e4m3fn)})), "in a dtype that needs scales"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), CASES.values(), ids=CASES)
def test_tensors_that_do_not_fit_are_refused_before_weights_are_loaded(tmp_path, change, message):
    config = changed_model(tmp_path / "model", change)
    with pytest.raises(UserError) as refused:
        resolve_model(config)
    assert str(refused.value).startswith(f"model.path {config.path}: ") and message in str(refused.value)


@pytest.mark.parametrize("change", [CASES["untied"][0], CASES["shape"][0]], ids=["untied", "shape"])
def test_they_are_refused_when_weights_are_loaded_too(tmp_path, change):
    # This is all that there is for a hub model that is downloaded by the run itself.
    with pytest.raises(UserError, match=r"model\.safetensors (lacks|has) "):
        load_frozen(changed_model(tmp_path / "model", change))


def test_check_and_prune_refuse_them(tmp_path):
    from bigcircuit.runtime.console import PlainConsole

    path = changed_model(tmp_path / "model", CASES["untied"][0]).path
    with pytest.raises(UserError, match=r"lacks lm_head\.weight"):
        check_config(Config(model=ModelConfig(path=path)), PlainConsole(quiet=True))
    with pytest.raises(UserError, match=r"lacks lm_head\.weight"):
        run(tmp_path / "run", model__path=path)
    assert not (tmp_path / "run").exists()


def test_the_index_is_named_where_weights_are_in_several_files(tmp_path):
    def change(folder):
        tensors(lambda found: found.pop(NORM))(folder)
        in_shards(folder)

    with pytest.raises(UserError, match=rf"model\.safetensors\.index\.json lacks {NORM}"):
        resolve_model(changed_model(tmp_path / "model", change))


def test_unused_tensors_are_told_in_a_line(tmp_path, capsys):
    extra = tensors(lambda found: found.update({"visual.weight": torch.zeros(3)}))
    config = changed_model(tmp_path / "model", extra)
    line = f"{config.path}: 1 tensor(s) in the files are not used by the model, the first: visual.weight"
    assert resolve_model(config).unused_line == line
    run(tmp_path / "run", model__path=config.path, train__steps=1)
    shown = capsys.readouterr()
    assert shown.out.count(line) == 1 and "LOAD REPORT" not in shown.out + shown.err


def test_the_embedded_model_and_one_in_shards_fit(tmp_path):
    for config in (ModelConfig(), changed_model(tmp_path / "model", in_shards)):
        resolved = resolve_model(config)
        assert resolved.unused_line is None and resolved.stored == torch.float32


@pytest.mark.parametrize(("name", "settings"), TINY_CASES)
def test_what_transformers_saves_fits_for_every_architecture(tmp_path, name, settings):
    saved = tiny_model(name, settings)
    saved.model.save_pretrained(tmp_path)
    resolved = resolve_model(ModelConfig(path=str(tmp_path)))
    assert resolved.unused == () and resolved.shapes == saved.shapes
    expected = dict(saved.model.named_parameters())
    for key, parameter in resolved.load(torch.device("cpu")).model.named_parameters():
        assert torch.equal(parameter, expected[key]), key
    assert replace(resolved, unused=()) == resolved
