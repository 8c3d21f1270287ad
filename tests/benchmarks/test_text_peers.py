"""Other tools on general text: what is counted and what is compared."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.text import METHODS, REMOVED
from benchmarks.text_peers import compared, perplexity, table
from benchmarks.text_peers_prune import batches, expanded, held_out, size
from bigcircuit.attribution.baselines import LEARNED_GATES


def grouped_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=20,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


def test_copies_of_keys_and_values_change_nothing_and_count_once():
    model, windows = grouped_model(), [[1, 2, 3, 4], [5, 6], [7, 8, 9, 10]]
    before, losses = size(model), held_out(model, windows)
    assert held_out(expanded(model), windows) == pytest.approx(losses, rel=1e-5)
    assert size(model) == before
    heads = 3  # of the first layer: the fourth and its copies go, the group stays
    attention = model.model.layers[0].self_attn
    for name in ("q_proj", "k_proj", "v_proj"):
        projection = getattr(attention, name)
        projection.weight = torch.nn.Parameter(projection.weight[: heads * attention.head_dim])
        projection.out_features = heads * attention.head_dim
    assert size(model) == before - 16 * attention.head_dim
    attention.group_of_head = [0]
    assert size(model) == before - 16 * attention.head_dim * 3


def test_batches_hold_windows_of_one_length():
    found = batches([[1, 2], [1, 2, 3], [4, 5], [6, 7]], 2)
    assert [places for places, _ in found] == [[0, 2], [3], [1]]
    assert [tuple(ids.shape) for _, ids in found] == [(2, 2), (1, 2), (1, 3)]


def test_perplexity_is_of_all_tokens():
    found = perplexity([2.0, 9.0], [1, 3])
    assert found["mean"] == pytest.approx(math.exp(11 / 4), rel=1e-6) and found["low"] <= found["mean"] <= found["high"]


def test_methods_short_of_the_size_are_shown_and_not_compared():
    def row(method, share, removed, mean):
        return {"method": method, "share": share, "removed": removed, "mean": mean, "low": mean, "high": mean}

    rows = [one for share in REMOVED for one in (row("near", share, share - 0.01, 6.0), row("far", share, 0.1, 3.0))]
    rows.append({"method": "broken", "share": 0.2, "error": "ValueError: no"})
    assert compared(rows, 0.2) == [6.0]
    full = {"mean": 2.0, "low": 2.0, "high": 2.0}
    learned = [{"method": LEARNED_GATES, "removed": share, **full, "mean": 4.0} for share in REMOVED]
    result = {"model": "a/tiny", "learned": {"full": full, "methods": learned}}
    text = "\n".join(table([{**result, "tools": {"optipfair": {"version": "0", "methods": rows}}}]))
    assert "3.00 [3.00, 3.00] (10.0%)" in text and "FAILS: ValueError: no" in text
    assert "best of optipfair | **0.50** | **0.50** | **0.50** |" in text and METHODS[0] not in text
