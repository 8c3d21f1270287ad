"""The interpolation between an activation and what takes its place."""

import pytest
import torch

from bigcircuit.forward.interpolate import Interpolate


@pytest.mark.parametrize("ablated", [(1, 1, 1, 5), (2, 1, 1, 5), (1, 3, 4, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("mask", [(2, 1, 1, 5), (2, 3, 1, 5)])
def test_gradients_of_the_interpolation_are_finite_differences(ablated, mask):
    generator = torch.Generator().manual_seed(0)
    parts = [
        torch.rand(size, dtype=torch.float64, generator=generator).requires_grad_()
        for size in ((2, 3, 4, 5), ablated, mask)
    ]
    assert torch.autograd.gradcheck(Interpolate.apply, parts)
