"""Weights of layers, read from a model and written into a new one."""

import pytest
import torch

from bigcircuit.errors import UserError
from bigcircuit.planted.weights import build_wide_model, read_layers, repeat_hidden
from tests.helpers.tiny_models import TINY, TOKEN_IDS, tiny_model

GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 64, **TOKEN_IDS}


@pytest.mark.parametrize(("family", "sizes"), [("llama", TINY), ("gpt2", GPT2)])
def test_a_model_built_of_its_own_layers_is_the_same(family, sizes):
    frozen = tiny_model(family, sizes)
    tokens = torch.arange(24).view(2, 12)
    again = build_wide_model(frozen.model, read_layers(frozen), 1)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, frozen.model(tokens).logits)


def test_repeated_hidden_states_are_read_as_before():
    (layer, *_) = read_layers(tiny_model("gpt2", GPT2))
    (wide,) = repeat_hidden([layer], 3)
    state = torch.randn(layer.q.shape[-1] - 1)
    for name in ("q", "k", "v", "inputs"):
        before, after = getattr(layer, name), getattr(wide, name)
        torch.testing.assert_close(
            after @ torch.cat([state, state, state, torch.ones(1)]), before @ torch.cat([state, torch.ones(1)])
        )
    torch.testing.assert_close(wide.neurons_write, torch.cat([layer.neurons_write] * 3, dim=-1))


def test_architectures_with_joined_projections_are_refused():
    with pytest.raises(UserError, match="'gpt_neox' cannot be widened"):
        read_layers(tiny_model("gpt_neox", {**TINY, "num_key_value_heads": 4}))
