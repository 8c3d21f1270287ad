"""Soft top-k: values that add up to a size, and the gradient through the threshold."""

import torch

from bigcircuit.gates.soft_top_k import soft_top_k


def test_values_add_up_and_keep_the_order():
    scores = torch.randn(3, 1, 40, dtype=torch.float64)
    weight = torch.rand(3, 1, 40, dtype=torch.float64)
    size = torch.tensor([0.5, 4.0, 17.0], dtype=torch.float64).view(3, 1, 1).clamp(max=0.9 * weight.sum(-1).min())
    for temperature in (1.0, 0.1, 0.01):
        found = soft_top_k(scores, size, torch.full_like(size, temperature), weight)
        torch.testing.assert_close((found * weight).sum(-1, keepdim=True), size, rtol=1e-6, atol=1e-9)
        assert (found.gather(-1, scores.argsort(-1)).diff(dim=-1) >= 0).all()


def test_a_cold_one_is_the_top_k():
    scores = torch.randperm(30).double().view(1, 1, 30)
    found = soft_top_k(scores, torch.full((1, 1, 1), 7.0), torch.full((1, 1, 1), 1e-2), torch.ones_like(scores))
    assert torch.equal((found > 0.5).nonzero()[:, -1].sort().values, scores[0, 0].topk(7).indices.sort().values)


def test_the_gradient_goes_through_the_threshold():
    scores = torch.randn(2, 1, 12, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(2, 1, 12, dtype=torch.float64, requires_grad=True)
    size, temperature = torch.full((2, 1, 1), 2.0).double(), torch.full((2, 1, 1), 0.4).double()
    # The threshold is known to about 1e-11, so differences are over more than the usual 1e-6.
    assert torch.autograd.gradcheck(
        lambda s, w: soft_top_k(s, size, temperature, w), (scores, weight), eps=1e-4, atol=1e-5
    )
    # What opens one node closes the others by as much.
    found = soft_top_k(scores, size, temperature, weight.detach())
    gradient = torch.autograd.grad((found * weight.detach()).sum(), scores)[0]
    assert gradient.abs().max() < 1e-9


def test_more_than_there_is_opens_everything():
    scores = torch.randn(1, 1, 9)
    found = soft_top_k(scores, torch.full((1, 1, 1), 50.0), torch.full((1, 1, 1), 0.3), torch.ones_like(scores))
    assert torch.isfinite(found).all() and found.min() > 0.9


def test_no_bit_depends_on_the_other_rows():
    """Rows whose thresholds are found in few and in many steps."""
    spread = torch.tensor([0.01, 1.0, 10.0, 100.0, 1.0]).view(5, 1, 1)
    scores = torch.randn(5, 1, 300, generator=torch.Generator().manual_seed(0)) * spread
    size = torch.tensor([0.3, 30.0, 299.0, 7.0, 150.0]).view(5, 1, 1)
    temperature = torch.tensor([0.6, 0.1, 0.02, 0.05, 2.0]).view(5, 1, 1)
    weight = torch.ones_like(scores)
    together = soft_top_k(scores, size, temperature, weight)
    for row in range(5):
        own = slice(row, row + 1)
        assert torch.equal(together[own], soft_top_k(scores[own], size[own], temperature[own], weight[own]))
    torch.testing.assert_close(together.double().sum(-1, keepdim=True), size.double(), rtol=1e-4, atol=1e-6)
