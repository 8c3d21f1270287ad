"""Models that gates cannot do what they say in are refused, whatever the tables say of them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.models import build_tiny
from bigcircuit.errors import UserError
from bigcircuit.forward.model_check import check_loaded_model
from bigcircuit.model.granularity import ATTENTION, EXPERT, MLP
from bigcircuit.model.sites import find_sites
from tests.helpers.tiny_models import TINY, tiny_model


def without(frozen, site):
    """The model with one of its sites forgotten."""
    layers = tuple(
        replace(layer, sites={name: module for name, module in layer.sites.items() if name != site})
        for layer in frozen.layers
    )
    return replace(frozen, layers=layers)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sound_model_passes_and_is_left_as_it_was(dtype):
    frozen = tiny_model("llama", TINY)
    frozen.model.to(dtype)
    check_loaded_model(frozen)
    assert not any(p.requires_grad or p.grad is not None for p in frozen.model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in frozen.model.modules())


@pytest.mark.parametrize(("name", "site"), [("llama", ATTENTION), ("deepseek_v3", MLP), ("qwen3_moe", EXPERT)])
def test_a_path_around_the_gates_is_found(name, site):
    frozen = find_sites(build_tiny(name))
    with pytest.raises(UserError, match="with all gates closed it is not the model on the corrupted|around the gates"):
        check_loaded_model(without(frozen, site))


def test_a_path_that_moves_nothing_between_tokens_is_found_by_its_gradient():
    frozen = find_sites(build_tiny("gemma4_text"))
    with pytest.raises(UserError, match=r"per_layer_\w+.weight writes into the residual stream around the gates"):
        check_loaded_model(replace(frozen, architecture=replace(frozen.architecture, always_open=())))
    check_loaded_model(frozen)


def test_an_encoder_is_found():
    model = build_tiny("bert")
    frozen = find_sites(model)
    check_loaded_model(frozen)
    model.config.is_decoder = False  # read in every pass
    with pytest.raises(UserError, match="its logits depend on later tokens"):
        check_loaded_model(frozen)


class Detached(nn.Linear):
    """A projection whose kernel has no gradient."""

    def forward(self, x):
        return super().forward(x.detach())


class Wrong(nn.Linear):
    """A projection whose gradient is that of another matrix."""

    def forward(self, x):
        out = super().forward(x)
        return out.detach() + (x - x.detach()) @ self.weight.flip(1).T


@pytest.mark.parametrize(("kind", "message"), [(Detached, "gives no gradient"), (Wrong, "is not that of its matrix")])
def test_wrong_gradients_are_found(kind, message):
    frozen = tiny_model("llama", TINY)
    frozen.layers[1].mlp.__class__ = kind
    with pytest.raises(UserError, match=rf"layers.1.mlp.down_proj \({kind.__name__}\) {message}|of model.layers.1.mlp"):
        check_loaded_model(frozen, brief=True)
