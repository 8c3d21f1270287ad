"""Architectures that are added from Python."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import bigcircuit
from bigcircuit.errors import UserError
from bigcircuit.model.architectures import ARCHITECTURES
from bigcircuit.model.sites import find_sites

NEW = "arcee"
"""A type that transformers has: Llama without a gate projection."""


def test_a_registered_type_is_masked(monkeypatch):
    monkeypatch.delitem(ARCHITECTURES, NEW, raising=False)
    config = AutoConfig.for_model(
        NEW, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, vocab_size=32
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UserError, match="model type 'arcee' is not"):
        find_sites(model)
    bigcircuit.register_architecture(NEW, like="llama", mlp="mlp.down_proj")
    try:
        assert [(s.heads, s.intermediate) for s in find_sites(model).shapes] == [(2, 24)] * 2
        with pytest.raises(UserError, match="in the table already"):
            bigcircuit.register_architecture(NEW)
    finally:
        del ARCHITECTURES[NEW]
    assert torch.is_tensor(model(torch.ones(1, 3, dtype=torch.long)).logits)


def test_what_is_unknown_is_named():
    with pytest.raises(UserError, match="like 'lama' is not a known model type"):
        bigcircuit.register_architecture("x", like="lama")
    with pytest.raises(UserError, match="mpl is not a path of an architecture"):
        bigcircuit.register_architecture("x", mpl="a.b")
    assert "x" not in ARCHITECTURES
