"""Penalties and dual variables against closed forms."""

import torch

from bigcircuit.config.load import load
from bigcircuit.train.penalty import Duals


def test_dual_rises_while_too_large_and_falls_when_too_small():
    """The published code ascends with the wrong sign."""
    duals = Duals(load(None, {"target.head": 4, "train.penalty_ramp": 0.0}), {"head": 10})
    duals.update({"head": torch.tensor(8.0)}, 1.0)
    risen = duals.value["head"]
    assert risen > 0
    size = torch.tensor(8.0, requires_grad=True)
    duals.terms({"head": size}, 1.0)["head"].backward()
    assert size.grad > 0, "descent on the loss must shrink the circuit"
    duals.update({"head": torch.tensor(2.0)}, 1.0)
    assert duals.value["head"] < risen
