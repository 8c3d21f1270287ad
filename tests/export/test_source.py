"""Weights as they are stored: several files, bfloat16, tied, without the prefix of the base model, with an adapter, damaged."""

import json
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.models import build_tiny
from bigcircuit.ablation.ablation import ZERO
from bigcircuit.config.schema import ModelConfig
from bigcircuit.errors import UserError
from bigcircuit.export.source import SourceWeights
from bigcircuit.export.verify import Prompts, compare_outputs, run_masked
from bigcircuit.model.load import load_frozen
from bigcircuit.model.resolve import resolve_model
from tests.helpers.exports import leaf_masks, random_constants, request_of, saved_tiny, write_export
from tests.helpers.tiny_models import GPT2_NAMES, TINY, tiny_model

PROMPTS = Prompts(torch.randint(3, 96, (2, 10), generator=torch.Generator().manual_seed(0)), 5, 4)


def outputs_of(folder, **settings):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **settings).eval()
    from bigcircuit.export.fresh_process import run_prompts

    return run_prompts(model, PROMPTS.ids, PROMPTS.prompt_tokens, PROMPTS.new_tokens)


def assert_masked(request, folder) -> None:
    config = request.model.config.model_copy(update={"dtype": "float32"})
    found = compare_outputs(run_masked(load_frozen(config), request, PROMPTS), outputs_of(folder))
    assert found.is_equal and found.same_tokens == found.tokens, found


def test_several_files_of_bfloat16_stay_bfloat16(tmp_path):
    model = tiny_model("llama", TINY).model.to(torch.bfloat16)
    model.save_pretrained(tmp_path / "base", max_shard_size="20kB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 2
    request = request_of(resolve_model(ModelConfig(path=str(tmp_path / "base"), dtype="bfloat16")))
    write_export("uniform", request, tmp_path / "out")
    with safe_open(tmp_path / "out/model.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"
    assert_masked(request, tmp_path / "out")


def test_constants_of_a_bfloat16_model_keep_their_precision(tmp_path):
    tiny_model("llama", TINY).model.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    model = resolve_model(ModelConfig(path=str(tmp_path / "base"), dtype="bfloat16"))
    request = request_of(model, random_constants(model.shapes))
    for name in ("uniform", "compact"):
        write_export(name, request, tmp_path / name)
        stored = load_file(tmp_path / name / "model.safetensors")
        assert stored["model.layers.1.self_attn.o_proj.bias"].dtype == torch.float32
        assert_masked(request, tmp_path / name)


def test_tied_embeddings_are_written_once(tmp_path):
    request = request_of(saved_tiny("llama", {**TINY, "tie_word_embeddings": True}, tmp_path / "base"))
    write_export("compact", request, tmp_path / "out")
    assert "lm_head.weight" not in load_file(tmp_path / "out/model.safetensors")
    assert_masked(request, tmp_path / "out")


def test_older_files_lack_the_prefix_of_the_base_model(tmp_path):
    saved_tiny("gpt2", GPT2_NAMES, tmp_path / "base")
    stored = load_file(tmp_path / "base/model.safetensors")
    save_file(
        {name.removeprefix("transformer."): tensor for name, tensor in stored.items()},
        tmp_path / "base/model.safetensors",
        {"format": "pt"},
    )
    request = request_of(resolve_model(ModelConfig(path=str(tmp_path / "base"))))
    write_export("uniform", request, tmp_path / "out")
    assert_masked(request, tmp_path / "out")


@pytest.mark.parametrize("bias", ["none", "all"])
def test_an_adapter_is_merged_first(tmp_path, bias):
    saved_tiny("qwen2", TINY, tmp_path / "base")
    torch.manual_seed(1)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    lora = LoraConfig(r=2, target_modules=["q_proj", "o_proj", "down_proj"], bias=bias, init_lora_weights=False)
    get_peft_model(base, lora).save_pretrained(tmp_path / "adapter")
    config = ModelConfig(path=str(tmp_path / "base"), adapter=str(tmp_path / "adapter"))
    request = request_of(resolve_model(config))
    for name in ("uniform", "compact"):
        write_export(name, request, tmp_path / name)
        assert_masked(request, tmp_path / name)
    with pytest.raises(
        UserError, match="--format ia3: the model has the adapter .*adapter, and peft would have to add both"
    ):
        write_export("ia3", request, tmp_path / "ia3")


def test_the_width_of_heads_that_divide_no_hidden_size_is_written_as_mistral(tmp_path):
    model = saved_tiny("llama", {**TINY, "num_key_value_heads": 4}, tmp_path / "base")
    masks = {name: mask.clone() for name, mask in request_of(model).masks.items()}
    masks["attention_neuron"][:] = torch.tensor([True] * 24 + [False] * 8)
    masks["mlp_neuron"][:, :9] = True
    request = request_of(model, ZERO, masks)
    prepared = write_export("uniform", request, tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.model_type, config.num_attention_heads, config.sliding_window) == ("mistral", 3, None)
    assert any("written as mistral, which has the same tensors" in note for note in prepared.notes)
    assert_masked(request, tmp_path / "out")


@pytest.mark.parametrize(("own_biases", "constants"), [(True, False), (False, True)])
def test_a_llama_with_biases_is_padded_because_mistral_has_none(tmp_path, own_biases, constants):
    settings = {**TINY, "num_key_value_heads": 4, "attention_bias": own_biases}
    model = saved_tiny("llama", settings, tmp_path / "base")
    masks = {name: mask.clone() for name, mask in request_of(model).masks.items()}
    masks["attention_neuron"][:] = torch.tensor([True] * 24 + [False] * 8)
    masks["mlp_neuron"][:, :9] = True
    request = request_of(model, random_constants(model.shapes) if constants else ZERO, masks)
    write_export("uniform", request, tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert (config.model_type, config.num_attention_heads, config.attention_bias) == ("llama", 4, True)
    assert_masked(request, tmp_path / "out")


def test_layers_that_add_nothing_are_left_out_and_sliding_windows_keep_their_layers(tmp_path):
    settings = {**TINY, "sliding_window": 4, "query_pre_attn_scalar": 8}
    model = saved_tiny("gemma2", settings, tmp_path / "base")
    masks = {name: mask.clone() for name, mask in request_of(model).masks.items()}
    for name in ("attention_neuron", "mlp_neuron"):
        masks[name][:] = True
        masks[name][0] = False
    request = request_of(model, ZERO, masks)
    for name in ("uniform", "compact"):
        write_export(name, request, tmp_path / name)
        assert AutoConfig.from_pretrained(tmp_path / name).layer_types == model.hf_config.layer_types[1:]
        assert_masked(request, tmp_path / name)


def test_masks_behind_the_mlp_close_rows(tmp_path):
    model = saved_tiny("gpt2", GPT2_NAMES, tmp_path / "base")
    masks = dict(request_of(model).masks)
    masks["mlp_output"] = torch.rand(3, 32, generator=torch.Generator().manual_seed(2)) < 0.5
    constants = random_constants(model.shapes, ("attention", "mlp", "mlp_output"))
    for ablation in (ZERO, constants):
        request = request_of(model, ablation, masks)
        write_export("compact", request, tmp_path / ablation.name)
        assert_masked(request, tmp_path / ablation.name)
    with pytest.raises(UserError, match="--format ia3: the circuit closes outputs of MLPs"):
        write_export("ia3", request_of(model, ZERO, masks), tmp_path / "ia3")


def test_widths_are_padded_to_a_multiple(tmp_path):
    model = saved_tiny("llama", TINY, tmp_path / "base")
    request = replace(request_of(model), multiple_of=16)
    for name in ("uniform", "compact"):
        write_export(name, request, tmp_path / name)
        widths = {
            tensor.shape[0]
            for key, tensor in load_file(tmp_path / name / "model.safetensors").items()
            if "up_proj" in key
        }
        assert all(width % 16 == 0 for width in widths) and max(widths) == 32
        assert_masked(request, tmp_path / name)
    assert replace(request, multiple_of=100).padded_width(3) == 48, "no more than the base"


def test_layers_that_are_not_alike_are_refused(tmp_path):
    request = request_of(saved_tiny("llama", TINY, tmp_path / "base"))
    request.check_layers("compact")
    shapes = request.base.shapes
    layers = tuple(
        replace(layer, shape=replace(shapes[0], heads=2 + number)) for number, layer in enumerate(request.base.layers)
    )
    other = replace(request, model=replace(request.model, skeleton=replace(request.base, layers=layers)))
    other.check_layers("ia3", alike=False)
    with pytest.raises(UserError, match=r"--format compact: llama \(dense\) has layers of different widths"):
        other.check_layers("compact")


@pytest.mark.parametrize("form", ["uniform", "gguf"])
def test_mixtures_are_refused_where_a_stock_class_needs_all_experts(tmp_path, form):
    build_tiny("qwen3_moe").save_pretrained(tmp_path / "base")
    model = resolve_model(ModelConfig(path=str(tmp_path / "base")))
    message = rf"--format {form}: qwen3_moe \(mixture of experts\) routes tokens among all of its experts, .* --format compact or"
    with pytest.raises(UserError, match=message):
        write_export(form, request_of(model, masks=leaf_masks(model.shapes)), tmp_path / form)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("olmo_hybrid", r"olmo_hybrid \(hybrid\) has layers that are not one attention and one MLP"),
        ("minicpm3", r"minicpm3 \(dense, latent attention\) has heads without rows of their own"),
        ("diffllama", r"diffllama \(dense\) cannot be cut, because its heads work in pairs; use --format zeroed"),
    ],
)
def test_kinds_that_cannot_be_cut_are_refused_before_weights_are_loaded(tmp_path, name, message):
    build_tiny(name).save_pretrained(tmp_path / "base")
    model = resolve_model(ModelConfig(path=str(tmp_path / "base")))
    for form in ("compact", "uniform"):
        with pytest.raises(UserError, match=f"--format {form}: {message}"):
            write_export(form, request_of(model, masks=leaf_masks(model.shapes)), tmp_path / form)
        assert not (tmp_path / form).exists()


def test_weights_that_cannot_be_cut_are_one_line(tmp_path):
    model = saved_tiny("llama", TINY, tmp_path / "base")
    path = tmp_path / "base/model.safetensors"
    stored = load_file(path)
    save_file(stored | {"model.norm.weight": stored["model.norm.weight"].to(torch.float8_e4m3fn)}, path)
    with pytest.raises(
        UserError, match=r"model.norm.weight is quantised or of integers, and rows of such weights cannot"
    ):
        SourceWeights(model.config, model.skeleton.model)
    save_file({name: tensor for name, tensor in stored.items() if name != "lm_head.weight"}, path)
    with pytest.raises(UserError, match=r"stores no tensor for lm_head.weight; save the model once"):
        SourceWeights(model.config, model.skeleton.model)
