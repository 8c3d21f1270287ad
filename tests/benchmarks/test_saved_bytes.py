"""Bytes kept for the backward pass."""

import pytest
import torch

from benchmarks.saved_bytes import count_saved, masked, plain


@pytest.mark.parametrize(("checkpointing", "limit"), [(False, 1.3), (True, 2.0)])
def test_saved_bytes_of_gpt2_small_against_the_plain_model(checkpointing, limit):
    base, ours = plain(4, checkpointing), masked(4, checkpointing)  # 12 and 24: benchmarks/saved_bytes.md
    assert base < ours <= limit * base


def test_counter_counts_each_storage_once_and_no_parameter():
    layer = torch.nn.Linear(8, 8, bias=False).requires_grad_(False)
    x = torch.randn(4, 8, requires_grad=True)
    with count_saved(layer) as saved:
        y = layer(x)  # a frozen projection keeps nothing of its input
        assert saved.total == 0
        (y * y).sum()
    assert saved.total == y.numel() * 4
