"""Hard-concrete gates against closed forms, a million draws, and captum's implementation."""

import math

import pytest
import torch
from scipy import integrate

from bigcircuit.gates.hard_concrete import BETA, GAMMA, ZETA, binary_sample, probability_open, sample

DRAWS = 1_000_000
LOG_ALPHAS = [-3.0, -1.0, 0.0, 0.5, 2.0, 4.0]


def draw(log_alpha: float) -> torch.Tensor:
    uniform = torch.rand(DRAWS, generator=torch.Generator().manual_seed(7))
    return sample(torch.tensor(log_alpha), uniform)


def cdf_of_stretched(x: float, log_alpha: float) -> float:
    """P(s (zeta - gamma) + gamma <= x) for 0 < x < 1; Louizos et al. 2018, eq. 24."""
    s = (x - GAMMA) / (ZETA - GAMMA)
    return 1 / (1 + math.exp(-((math.log(s) - math.log(1 - s)) * BETA - log_alpha)))


@pytest.mark.parametrize("log_alpha", LOG_ALPHAS)
def test_moments_of_a_million_draws(log_alpha):
    z = draw(log_alpha)
    closed, opened = cdf_of_stretched(1e-12, log_alpha), 1 - cdf_of_stretched(1 - 1e-12, log_alpha)
    mean, _ = integrate.quad(lambda x: 1 - cdf_of_stretched(x, log_alpha), 0, 1)
    second, _ = integrate.quad(lambda x: 2 * x * (1 - cdf_of_stretched(x, log_alpha)), 0, 1)
    assert (z == 0).double().mean().item() == pytest.approx(closed, abs=2e-3)
    assert (z == 1).double().mean().item() == pytest.approx(opened, abs=2e-3)
    assert z.double().mean().item() == pytest.approx(mean, abs=2e-3)
    assert (z.double() ** 2).mean().item() == pytest.approx(second, abs=2e-3)


@pytest.mark.parametrize("log_alpha", LOG_ALPHAS)
def test_probability_open_is_the_share_of_draws_above_zero(log_alpha):
    expected = probability_open(torch.tensor(log_alpha, dtype=torch.float64)).item()
    assert expected == pytest.approx(1 - cdf_of_stretched(1e-12, log_alpha), abs=1e-9)
    assert (draw(log_alpha) > 0).double().mean().item() == pytest.approx(expected, abs=2e-3)


def test_captum_agrees():
    from captum.module import BinaryConcreteStochasticGates

    gates = BinaryConcreteStochasticGates(
        n_gates=len(LOG_ALPHAS), temperature=BETA, lower_bound=GAMMA, upper_bound=ZETA
    )
    values = torch.tensor(LOG_ALPHAS)
    gates.log_alpha_param.data.copy_(values)
    torch.testing.assert_close(probability_open(values), gates.get_gate_active_probs())
    torch.manual_seed(3)
    theirs = gates._sample_gate_values(200_000).clamp(0, 1)  # captum clamps when it applies them
    ours = sample(values, torch.rand(200_000, len(LOG_ALPHAS), generator=torch.Generator().manual_seed(4)))
    torch.testing.assert_close(ours.mean(0), theirs.mean(0), atol=5e-3, rtol=0)
    torch.testing.assert_close(ours.std(0), theirs.std(0), atol=5e-3, rtol=0)


def test_gradient_against_finite_differences():
    uniform = torch.linspace(0.02, 0.98, 41, dtype=torch.float64)
    log_alpha = torch.linspace(-2, 3, 41, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda a: sample(a, uniform), log_alpha)
    torch.autograd.gradcheck(probability_open, log_alpha)


def test_straight_through_is_binary_with_the_soft_gradient():
    uniform = torch.rand(1000, generator=torch.Generator().manual_seed(5))
    soft_in = torch.full((1000,), 0.7, requires_grad=True)
    hard_in = torch.full((1000,), 0.7, requires_grad=True)
    soft, hard = sample(soft_in, uniform), binary_sample(hard_in, uniform)
    torch.testing.assert_close(hard.detach(), (soft > 0.5).float(), atol=1e-6, rtol=0)
    soft.sum().backward()
    hard.sum().backward()
    torch.testing.assert_close(hard_in.grad, soft_in.grad)


def test_noise_at_the_ends_is_finite():
    ends = torch.tensor([0.0, 1.0], requires_grad=False)
    log_alpha = torch.zeros(2, requires_grad=True)
    z = sample(log_alpha, ends)
    z.sum().backward()
    assert z.tolist() == [0.0, 1.0]
    assert torch.isfinite(log_alpha.grad).all()
