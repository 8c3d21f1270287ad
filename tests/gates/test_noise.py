"""Noise that depends on what it is for and on nothing else."""

import pytest
import torch

from bigcircuit.gates.noise import Noise


def test_noise_depends_on_member_step_layer_and_example_only():
    noise = Noise()
    whole = noise.uniform([3, 4], [7, 9], 2, [10, 11, 12], 6)
    torch.manual_seed(99)
    assert torch.equal(noise.uniform([4], [9], 2, [12], 6)[0, 0], whole[1, 2])
    assert torch.equal(noise.uniform([4, 3], [9, 7], 2, [11], 6)[1, 0], whole[0, 1])
    for other in (
        noise.uniform([5], [9], 2, [12], 6),
        noise.uniform([4], [8], 2, [12], 6),
        noise.uniform([4], [9], 1, [12], 6),
    ):
        assert not torch.equal(other[0, 0], whole[1, 2])
    many = noise.uniform(range(20), [0] * 20, 0, range(50), 100)
    assert many.mean().item() == pytest.approx(0.5, abs=5e-3)
    assert many.var().item() == pytest.approx(1 / 12, abs=2e-3)
    flat = many.view(1000, 100)
    correlation = torch.corrcoef(flat)[~torch.eye(1000, dtype=torch.bool)]
    assert correlation.std().item() == pytest.approx(0.1, abs=5e-3), "streams of different keys are independent"
