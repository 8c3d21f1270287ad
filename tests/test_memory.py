"""Bytes kept for the backward pass: the limits the project promises, and the prediction that needs no weights."""

import pytest
import torch

from benchmarks.saved_bytes import masked, plain, predicted
from bigcircuit.config_file import load
from bigcircuit.frozen.sites import find_sites
from bigcircuit.memory import count_saved, estimate
from tests.test_architectures import SMALL, build


@pytest.mark.parametrize(("checkpointing", "limit"), [(False, 1.3), (True, 2.0)])
def test_saved_bytes_of_gpt2_small_against_the_plain_model(checkpointing, limit):
    base, ours = plain(12, checkpointing), masked(12, checkpointing)
    assert base < ours <= limit * base
    assert predicted(12, checkpointing) == pytest.approx(ours, rel=0.1)


def test_counter_counts_each_storage_once_and_no_parameter():
    layer = torch.nn.Linear(8, 8, bias=False).requires_grad_(False)
    x = torch.randn(4, 8, requires_grad=True)
    with count_saved(layer) as saved:
        y = layer(x)  # a frozen projection keeps nothing of its input
        assert saved.total == 0
        (y * y).sum()
    assert saved.total == y.numel() * 4


def test_estimate_grows_with_members_and_shrinks_with_checkpointing():
    config = build("llama", SMALL).model.config
    with torch.device("meta"):
        frozen = find_sites(type(build("llama", SMALL).model)(config).eval().requires_grad_(False))
    one = estimate(frozen, load(None), 32)
    four = estimate(frozen, load(None, {"population.seeds": 4}), 32)
    small = estimate(frozen, load(None, {"train.checkpointing": True}), 32)
    assert one["frozen weights"] == sum(p.numel() * 4 for p in frozen.model.parameters())
    assert four["saved for backward"] == pytest.approx(4 * one["saved for backward"], rel=0.1)
    assert small["saved for backward"] < 0.4 * one["saved for backward"]
