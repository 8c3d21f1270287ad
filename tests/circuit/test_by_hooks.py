"""A circuit file written by hand, against plain passes of Hugging Face models with hooks that are written here.

Nothing here finds layers, folds masks, lays out batches or interpolates with the project's code.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.io.files import tensor_sha256
from bigcircuit.model.architectures import ARCHITECTURES
from tests.helpers.multimodal_models import CONFIGS
from tests.helpers.tiny_models import TINY, TINY_CONFIGS

EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12, "decoder_sparse_step": 1}
MODELS = {
    "llama": (TINY, "model.layers", "self_attn.o_proj", "mlp.down_proj"),
    "gpt2": (TINY_CONFIGS["gpt2"][0], "transformer.h", "attn.c_proj", "mlp.c_proj"),
    "gemma2": (TINY_CONFIGS["gemma2"][0], "model.layers", "self_attn.o_proj", "mlp.down_proj"),
    "qwen3_moe": ({**TINY, **EXPERTS}, "model.layers", "self_attn.o_proj", "mlp.experts"),
    "qwen2_vl": (CONFIGS["qwen2_vl"], "model.language_model.layers", "self_attn.o_proj", "mlp.down_proj"),
    "gemma3": (CONFIGS["gemma3"], "model.language_model.layers", "self_attn.o_proj", "mlp.down_proj"),
    "arcee": (TINY, "model.layers", "self_attn.o_proj", "mlp.down_proj"),
}
"""Model type -> settings, path of the layers, and paths of what writes into the residual stream; arcee is a type to be guessed."""
LAYERS, HEADS, SIZE, FFN, GROUPS = 3, 4, 8, 48, 2
LENGTHS = (9, 6)


@cache
def model_of(name: str):
    settings, path, *_ = MODELS[name]
    torch.manual_seed(0)
    auto = AutoModelForImageTextToText if name in CONFIGS else AutoModelForCausalLM
    model = auto.from_config(AutoConfig.for_model(name, **settings)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return model, model.get_submodule(path)


def prompts() -> list[tuple[Tensor, Tensor]]:
    numbers = torch.Generator().manual_seed(1)
    made = []
    for length in LENGTHS:
        clean = torch.randint(3, 96, (1, length), generator=numbers)
        corrupted = clean.clone()
        corrupted[:, 1:4] = (clean[:, 1:4] + 5) % 90 + 3
        made.append((clean, corrupted))
    return made


def write_circuit(path, name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Write a file with masks of blocks, heads and what is below MLPs. Returns what is kept at both sites of every layer."""
    numbers = torch.Generator().manual_seed(3)
    fine, width = ("expert", EXPERTS["num_experts"]) if name == "qwen3_moe" else ("mlp_neuron", FFN)
    blocks = torch.tensor([[True], [True], [name != "gpt2"]])
    heads = torch.rand(LAYERS, HEADS, generator=numbers) < 0.6
    lower = torch.rand(LAYERS, width, generator=numbers) < 0.6
    groups = HEADS if name == "gpt2" else GROUPS
    widths = {
        "block": 1, "attention": 1, "mlp": 1, "kv_group": groups, "head": HEADS, "attention_neuron": HEADS * SIZE,
        "mlp_neuron": 0 if fine == "expert" else FFN, fine: width,
    }  # fmt: skip
    masks = {"mask.block": blocks, "mask.head": heads, f"mask.{fine}": lower}
    known = {
        "widths": {granularity: [width] * LAYERS for granularity, width in widths.items()},
        "sha256": {mask: tensor_sha256(values) for mask, values in masks.items()},
    }
    text = {key: json.dumps(value) for key, value in known.items()}
    save_file(masks, path, {"format": "bigcircuit/1", "ablation": "interchange", **text})
    return [*(blocks & heads).repeat_interleave(SIZE, 1)], [*(blocks & lower)]


def by_hooks(name: str, kept: tuple[list[Tensor], list[Tensor]], clean: Tensor, corrupted: Tensor, how: str) -> Tensor:
    """Logits [T, V] of one prompt: two plain passes; the first one leaves what the second one is given where masks are False."""
    model, layers = model_of(name)
    noted: dict[nn.Module, tuple] = {}
    handles = []
    for layer, *masks in zip(layers, *kept, strict=True):
        for path, mask in zip(MODELS[name][2:], masks, strict=True):
            module = layer.get_submodule(path)
            if path.endswith("experts"):
                handles.append(module.register_forward_hook(experts_hook(noted, mask, how)))
            else:
                handles.append(module.register_forward_pre_hook(input_hook(noted, mask, how)))
    try:
        model(corrupted, use_cache=False)
        return model(clean, use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()


def input_hook(noted: dict, mask: Tensor, how: str):
    def hook(module, args):
        if module not in noted:
            noted[module] = args
            return None
        other = noted[module][0] if how == "interchange" else torch.zeros(())
        return (torch.where(mask, args[0], other), *args[1:])

    return hook


def experts_hook(noted: dict, mask: Tensor, how: str):
    def hook(module, args, _output):
        if module not in noted:
            noted[module] = args
            return None
        passes = [(args, mask), (noted[module], ~mask)] if how == "interchange" else [(args, mask)]
        total = torch.zeros_like(args[0])
        for (hidden, chosen, weights), counted in passes:
            for token in range(len(hidden)):
                for expert, weight in zip(chosen[token], weights[token], strict=True):
                    if counted[expert]:
                        gate, up = (module.gate_up_proj[expert] @ hidden[token]).chunk(2)
                        inner = nn.functional.silu(gate) * up
                        total[token] += weight * (module.down_proj[expert] @ inner)
        return total

    return hook


@pytest.fixture(autouse=True)
def _unlisted(monkeypatch):
    monkeypatch.delitem(ARCHITECTURES, "arcee")


def padded(pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Both prompts of all pairs and their mask, [R, T] each, padded on the left."""
    blank = [torch.zeros(1, LENGTHS[0] - length, dtype=torch.long) for length in LENGTHS]
    clean, corrupted = (
        torch.cat([torch.cat([left, ids], 1) for left, ids in zip(blank, side, strict=True)])
        for side in zip(*pairs, strict=True)
    )
    mask = torch.cat([torch.cat([left, torch.ones_like(ids)], 1) for left, (ids, _) in zip(blank, pairs, strict=True)])
    return clean, corrupted, mask


@contextmanager
def applied(path: Path, model: Any, how: str, corrupted: Tensor, mask: Tensor) -> Iterator[Any]:
    """Apply the circuit of a file, without gradients."""
    others = {"input_ids": corrupted, "attention_mask": mask} if how == "interchange" else None
    with torch.no_grad(), Circuit.load(path).applied(model, ablation=how, corrupted_ids=others) as masked:
        yield masked


@pytest.mark.parametrize("how", ["interchange", "zero"])
@pytest.mark.parametrize("name", MODELS)
def test_applied_circuits_are_those_of_hooks_written_here(tmp_path, name, how):
    kept, (model, _), pairs = write_circuit(tmp_path / "c.safetensors", name), model_of(name), prompts()
    clean, corrupted, mask = padded(pairs)
    with applied(tmp_path / "c.safetensors", model, how, corrupted, mask) as masked:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        found = masked(clean, attention_mask=mask, position_ids=positions, use_cache=False).logits
    for row, (pair, length) in enumerate(zip(pairs, LENGTHS, strict=True)):
        logits = by_hooks(name, kept, *pair, how)
        torch.testing.assert_close(found[row, -length:], logits, atol=2e-5, rtol=1e-4)
        assert (model(pair[0], use_cache=False).logits[0] - logits).abs().max() > 0.01


@pytest.mark.parametrize("how", ["interchange", "zero"])
@pytest.mark.parametrize("name", MODELS)
def test_generation_is_that_of_hooks_written_here(tmp_path, name, how):
    kept, (model, _), pairs = write_circuit(tmp_path / "c.safetensors", name), model_of(name), prompts()
    clean, corrupted, mask = padded(pairs)
    with applied(tmp_path / "c.safetensors", model, how, corrupted, mask) as masked:
        found = masked.generate(
            clean, attention_mask=mask, max_new_tokens=4, min_new_tokens=4, do_sample=False,
            use_cache=how == "zero" or name not in ("qwen3_moe", "arcee"),
        )  # fmt: skip
    ends = model.generation_config.eos_token_id
    for row, pair in enumerate(pairs):
        new = torch.zeros(1, 0, dtype=torch.long)
        for _ in range(4):
            logits = by_hooks(name, kept, *(torch.cat([ids, new], 1) for ids in pair), how)[-1]
            logits[torch.as_tensor([] if ends is None else ends).long()] = -float("inf")  # as `min_new_tokens` does
            new = torch.cat([new, logits.argmax().view(1, 1)], 1)
        assert torch.equal(found[row : row + 1, -4:], new)
