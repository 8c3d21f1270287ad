"""Hooks for other libraries, called as those call them: they give the activations of the masked model."""

import json

import pytest
import torch

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.convert.hooks import apply_in_trace, transformer_lens_hooks
from bigcircuit.errors import UserError
from bigcircuit.forward.applied import AppliedMasks
from bigcircuit.model.granularity import GRANULARITIES
from tests.helpers.exports import random_constants, request_of, saved_tiny, uneven_masks
from tests.helpers.tiny_models import TINY, tiny_model


def circuit_of(shapes, ablation: str, constants=None) -> Circuit:
    widths = {name: [g.width(shape) for shape in shapes] for name, g in GRANULARITIES.items()}
    return Circuit(
        uneven_masks(shapes), {}, {"ablation": ablation, "widths": json.dumps(widths)}, constants=constants or {}
    )


@pytest.mark.parametrize("bridge", [False, True])
def test_hooks_put_constants_in_the_place_of_closed_neurons(bridge):
    frozen = tiny_model("llama", TINY)
    constants = {site: values[0, :, 0] for site, values in random_constants(frozen.shapes).constants.items()}
    hooks = dict(transformer_lens_hooks(circuit_of(frozen.shapes, "mean", constants), bridge=bridge))
    places = ("attn.o.hook_in", "mlp.out.hook_in") if bridge else ("attn.hook_z", "mlp.hook_post")
    assert set(hooks) == {f"blocks.{layer}.{place}" for layer in range(3) for place in places}
    masks = uneven_masks(frozen.shapes)
    value = torch.randn(2, 5, 4, 8)
    found = hooks[f"blocks.1.{places[0]}"](value, hook=None).flatten(2)
    mask = masks["attention_neuron"][1]
    assert torch.equal(found[..., mask], value.flatten(2)[..., mask])
    assert torch.equal(found[..., ~mask], constants["attention"][1][~mask].expand(2, 5, -1))
    neurons = torch.randn(2, 5, 48)
    found = hooks[f"blocks.2.{places[1]}"](neurons, hook=None)
    assert torch.equal(found, torch.where(masks["mlp_neuron"][2], neurons, constants["mlp"][2]))


def test_under_interchange_ablation_closed_neurons_are_those_of_the_corrupted_prompts():
    frozen = tiny_model("llama", TINY)
    circuit = circuit_of(frozen.shapes, "interchange")
    with pytest.raises(UserError, match="hand over the activations of the corrupted prompts"):
        transformer_lens_hooks(circuit)
    cache = {f"blocks.{layer}.attn.hook_z": torch.randn(2, 5, 4, 8) for layer in range(3)}
    cache |= {f"blocks.{layer}.mlp.hook_post": torch.randn(2, 5, 48) for layer in range(3)}
    hooks = dict(transformer_lens_hooks(circuit, cache))
    value, mask = torch.randn(2, 5, 48), circuit.masks["mlp_neuron"][0]
    other = cache["blocks.0.mlp.hook_post"]
    assert torch.equal(hooks["blocks.0.mlp.hook_post"](value, hook=None), torch.where(mask, value, other))


class Traced:
    """Stands for nnsight: a module whose `input` is set inside a pass, by a hook of torch."""

    def __init__(self, module: torch.nn.Module) -> None:
        object.__setattr__(self, "_module", module)
        object.__setattr__(self, "changes", [])

    def __getattr__(self, name):
        if name == "input":
            return Deferred(self)
        found = getattr(self._module, name)
        if not isinstance(found, torch.nn.Module):
            return found
        made = Traced(found)
        object.__setattr__(self, name, made)
        return made

    def __getitem__(self, index):
        return Traced(self._module[index])

    def __setattr__(self, name, value):
        assert name == "input"
        self._module.register_forward_pre_hook(lambda _, args: (value.of(args[0]), *args[1:]))


class Deferred(torch.Tensor):
    """The input of a module, of which `torch.where` is asked before it is there."""

    def __new__(cls, _owner):
        return torch.Tensor._make_subclass(cls, torch.zeros(1))

    def __init__(self, _owner) -> None:
        self.made = lambda value: value

    def of(self, value):
        return self.made(value)

    @classmethod
    def __torch_function__(cls, func, _types, args=(), kwargs=None):
        if func is torch.where:
            made = cls(None)
            made.made = lambda value: torch.where(args[0], value, args[2])
            return made
        return super().__torch_function__(func, _types, args, kwargs or {})


def test_interventions_in_a_trace_give_the_masked_model(tmp_path):
    request = request_of(saved_tiny("gpt_neox", {**TINY, "num_key_value_heads": 4}, tmp_path / "base"))
    frozen, plain = (tiny_model("gpt_neox", {**TINY, "num_key_value_heads": 4}) for _ in range(2))
    prompt = torch.tensor([[5, 6, 7, 8]])
    with AppliedMasks.of(plain, request.masks, request.ablation):
        expected = plain.model(prompt).logits
    apply_in_trace(circuit_of(frozen.shapes, "zero"), Traced(frozen.model))
    assert torch.allclose(frozen.model(prompt).logits, expected, atol=1e-6)
