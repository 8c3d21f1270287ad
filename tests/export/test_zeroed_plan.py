"""Zeros inside the weights of mixtures, hybrids, recurrent models and latent attention, in the layout of the base's files."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.models import build_tiny
from bigcircuit.ablation.ablation import ZERO, Ablation
from bigcircuit.config.schema import ModelConfig
from bigcircuit.errors import UserError
from bigcircuit.export.closed_nodes import ClosedNodes
from bigcircuit.export.fresh_process import run_prompts
from bigcircuit.export.loading import load_exported
from bigcircuit.export.verify import Prompts, compare_outputs, run_masked
from bigcircuit.model.load import load_frozen
from bigcircuit.model.resolve import resolve_model
from tests.helpers.exports import leaf_masks, request_of, write_export

PROMPTS = Prompts(torch.randint(3, 96, (2, 8), generator=torch.Generator().manual_seed(0)), 4, 3)
KINDS = ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "olmo_hybrid", "mamba", "minicpm3", "apertus"]
"""Experts stored one by one under two names, experts with biases in one tensor, latent attention, mixers, buffers in the files."""


@pytest.mark.parametrize("name", KINDS)
def test_an_export_of_any_kind_is_the_masked_model_in_the_files_of_the_base(tmp_path, name):
    build_tiny(name).save_pretrained(tmp_path / "base")
    model = resolve_model(ModelConfig(path=str(tmp_path / "base")))
    frozen, before = load_frozen(model.config), load_file(tmp_path / "base/model.safetensors")
    for neurons in (False, True) if any(shape.experts for shape in model.shapes) else (False,):
        request = request_of(model, ZERO, leaf_masks(model.shapes, neurons=neurons))
        folder = tmp_path / f"out{neurons}"
        write_export("zeroed", request, folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        outputs = run_prompts(loaded, PROMPTS.ids, PROMPTS.prompt_tokens, PROMPTS.new_tokens)
        found = compare_outputs(run_masked(frozen, request, PROMPTS), outputs)
        assert found.is_equal and found.same_tokens == found.tokens, found
        after = load_file(folder / "model.safetensors")
        assert {key: (t.shape, t.dtype) for key, t in after.items()} == {
            key: (t.shape, t.dtype) for key, t in before.items()
        }
        changed = [key for key in before if not before[key].equal(after[key])]
        assert changed and all((before[key] - after[key])[after[key] != 0].eq(0).all() for key in changed), changed


def test_latent_attention_is_closed_by_an_adapter(tmp_path):
    build_tiny("minicpm3").save_pretrained(tmp_path / "base")
    model = resolve_model(ModelConfig(path=str(tmp_path / "base")))
    request = request_of(model, ZERO, leaf_masks(model.shapes))
    write_export("ia3", request, tmp_path / "out")
    outputs = run_prompts(load_exported(tmp_path / "out"), PROMPTS.ids, PROMPTS.prompt_tokens, PROMPTS.new_tokens)
    assert compare_outputs(run_masked(load_frozen(model.config), request, PROMPTS), outputs).is_equal


def test_constants_of_a_mixer_without_a_bias_are_refused(tmp_path):
    build_tiny("olmo_hybrid").save_pretrained(tmp_path / "base")
    model = resolve_model(ModelConfig(path=str(tmp_path / "base")))
    width = max(shape.mixer_heads * shape.mixer_dim for shape in model.shapes)
    mean = Ablation("mean", {"mixer": torch.ones(1, len(model.shapes), 1, width)})
    with pytest.raises(
        UserError, match=r"constants under mean ablation, and model.layers.*proj has no bias; use --abl"
    ):
        write_export("zeroed", request_of(model, mean, leaf_masks(model.shapes)), tmp_path / "out")


def test_layers_that_share_weights_are_refused_where_they_are_closed_differently(tmp_path):
    build_tiny("qwen3").save_pretrained(tmp_path / "base")
    frozen = load_frozen(ModelConfig(path=str(tmp_path / "base")))
    frozen.layers[2].mlp.weight = frozen.layers[0].mlp.weight
    masks = leaf_masks(frozen.shapes)
    with pytest.raises(
        UserError, match=r"m: two layers share model.layers.0.mlp.down_proj.weight, and the circuit closes"
    ):
        ClosedNodes(frozen, masks, ZERO, "m")
    masks["mlp_neuron"][2] = masks["mlp_neuron"][0]
    assert "model.layers.0.mlp.down_proj.weight" in ClosedNodes(frozen, masks, ZERO, "m").edits
