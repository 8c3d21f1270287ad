"""Architectures that are added from Python."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import bigcircuit
from bigcircuit.errors import UserError
from bigcircuit.model.architectures import ARCHITECTURES
from bigcircuit.model.sites import find_sites
from tests.helpers.tiny_models import TINY

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


def arcee(monkeypatch, folder=None):
    """A model of a type in no table, as an object or in a folder."""
    monkeypatch.delitem(ARCHITECTURES, NEW, raising=False)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(NEW, **TINY)).eval()
    if folder is not None:
        model.save_pretrained(folder)
    return model


def test_a_guessed_type_is_found_and_applied_as_an_object_too(monkeypatch, tmp_path):
    model = arcee(monkeypatch, tmp_path / "m")
    rows = [
        {"clean": [3 + i, 4, 5], "corrupted": [3 + i, 9, 5], "answers": [[7]], "wrong_answers": [[8]]}
        for i in range(12)
    ]
    how = {"size": 0.3, "train": {"steps": 2}, "quiet": True}
    with pytest.raises(UserError, match="set model.architecture to guess"):
        bigcircuit.find(model, None, rows, **how)
    gradient = model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    inner = model.model.layers[0].mlp.up_proj.weight
    inner.grad = torch.ones_like(inner)
    found = [
        bigcircuit.find(one, None, rows, **how, **{"model.architecture": "guess"})
        for one in (model, str(tmp_path / "m"))
    ]
    assert found[0].circuit.sizes() == found[1].circuit.sizes()
    assert all(torch.equal(m, found[1].circuit.masks[name]) for name, m in found[0].circuit.masks.items())
    with torch.no_grad(), found[0].circuit.applied(model, ablation="zero") as masked:
        assert torch.is_tensor(masked(torch.ones(1, 3, dtype=torch.long)).logits)
    assert model.lm_head.weight.grad is gradient and bool((inner.grad == 1).all()) and inner.requires_grad


def test_an_object_with_a_way_around_its_gates_is_refused(monkeypatch, tmp_path):
    model = arcee(monkeypatch)
    layer = model.model.layers[-1]
    layer.extra = torch.nn.Linear(TINY["hidden_size"], TINY["hidden_size"])
    plain = layer.forward
    layer.forward = lambda hidden, *args, **kwargs: plain(hidden, *args, **kwargs) + layer.extra(hidden)
    rows = [
        {"clean": [3, 4, i], "corrupted": [3, 9, i], "answers": [[7]], "wrong_answers": [[8]]} for i in range(5, 15)
    ]
    with pytest.raises(UserError, match="layers.2.extra.weight writes into the residual stream around the gates"):
        bigcircuit.find(
            model, None, rows, size=0.3, quiet=True, folder=tmp_path / "r", **{"model.architecture": "guess"}
        )


def test_what_is_unknown_is_named():
    with pytest.raises(UserError, match="like 'lama' is not a known model type"):
        bigcircuit.register_architecture("x", like="lama")
    with pytest.raises(UserError, match="mpl is not a path of an architecture"):
        bigcircuit.register_architecture("x", mpl="a.b")
    assert "x" not in ARCHITECTURES
