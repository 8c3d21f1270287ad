"""Noise of closed nodes: standard normal, and a function of what it is for and of nothing else."""

import numpy as np
import torch
from scipy import stats

from bigcircuit.ablation.gaussian import standard_normal
from bigcircuit.seeding import mix


def hashed(*keys):
    """splitmix64 along the keys, by Python's integers: an independent reading of the same formula."""
    mask, state = (1 << 64) - 1, 0
    for key in keys:
        state = (state + key + 0x9E3779B97F4A7C15) & mask
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
        state ^= state >> 31
    return state


def test_every_number_is_the_quantile_of_a_hash_of_its_place():
    seed = mix(7, 1)
    found = standard_normal(seed, torch.tensor([3, -4]), torch.tensor([[0, 1, 5], [2, 0, 1]]), 4)
    for row, (example, positions) in enumerate([(3, [0, 1, 5]), (-4, [2, 0, 1])]):
        for place, position in enumerate(positions):
            for neuron in range(4):
                uniform = ((hashed(seed + example, position, neuron) >> 11) + 0.5) * 2.0**-53
                assert found[row, place, neuron] == np.float32(stats.norm.ppf(uniform))


def test_a_hundred_thousand_numbers_are_standard_normal_and_independent():
    noise = standard_normal(mix(0), torch.arange(32), torch.arange(32).unsqueeze(0), 96).double()
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    for first, second in ((noise[0], noise[1]), (noise[:, 0], noise[:, 1]), (noise[..., 0], noise[..., 1])):
        assert abs((first * second).mean()) < 4 / first.numel() ** 0.5


def test_a_token_has_the_same_noise_in_every_batch_and_under_any_padding():
    whole = standard_normal(1, torch.arange(6), torch.arange(9).unsqueeze(0), 5)
    part = standard_normal(1, torch.tensor([4, 2]), torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]), 5)
    assert torch.equal(part[0, 2:], whole[4, :3])
    assert torch.equal(part[1], whole[2, :5])


def test_another_seed_gives_other_noise():
    one, other = (standard_normal(seed, torch.arange(4), torch.arange(8).unsqueeze(0), 16) for seed in (1, 2))
    assert (one != other).all()
