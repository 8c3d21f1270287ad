"""Soft top-k: gate values between 0 and 1 with a given sum, so that a size is a setting and not the outcome of a penalty.

Sigmoid top-k as in third-party entries of the MIB benchmark (Mueller et al. 2025, arXiv 2504.13151): sigmoid((s - tau) / T) with
tau found such that the values add up to k.
"""

import torch
from torch import Tensor

_HALVINGS = 40
_FULL = 0.999
"""The largest share of all nodes that is solved for; at 1 the threshold would be minus infinity."""


def soft_top_k(scores: Tensor, size: Tensor, temperature: Tensor, weight: Tensor) -> Tensor:
    """Compute sigmoid((scores - tau) / temperature) with tau such that sum(weight * value) is `size`.

    scores, weight [..., n]; size, temperature [..., 1]; leading dimensions broadcast. Differentiable with respect to scores
    and weight through tau as well: one Newton step with a graph, at the root that bisection found without one, has the
    gradient of the implicit function. Computed in float64, so that no bit depends on the members of the same call.
    """
    kind = scores.dtype
    scores, size, temperature, weight = (values.double() for values in (scores, size, temperature, weight))
    with torch.no_grad():
        size = torch.minimum(size, _FULL * weight.sum(-1, keepdim=True))
        low = scores.amin(-1, keepdim=True) - 20 * temperature
        high = scores.amax(-1, keepdim=True) + 20 * temperature
        for _ in range(_HALVINGS):
            root = (low + high) / 2
            above = (weight * torch.sigmoid((scores - root) / temperature)).sum(-1, keepdim=True) > size
            low, high = torch.where(above, root, low), torch.where(above, high, root)
        value = torch.sigmoid((scores - root) / temperature)
        slope = (weight * value * (1 - value) / temperature).sum(-1, keepdim=True).clamp(min=1e-9)
    found = (weight * torch.sigmoid((scores - root) / temperature)).sum(-1, keepdim=True)
    return torch.sigmoid((scores - root - (found - found.detach()) / slope) / temperature).to(kind)
