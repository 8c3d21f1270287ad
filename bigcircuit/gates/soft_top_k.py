"""Soft top-k: gate values between 0 and 1 with a given sum, so that a size is a setting and not the outcome of a penalty.

Sigmoid top-k as in third-party entries of the MIB benchmark (Mueller et al. 2025, arXiv 2504.13151): sigmoid((s - tau) / T) with
tau found such that the values add up to k.
"""

import torch
from torch import Tensor

_MOST = 60
"""Newton steps and halvings; four to seven are the rule."""
_CLOSE = 1e-10
"""Largest difference of the sum from the size, as a share of the size, that is left: below what a float32 value can tell."""
_FULL = 0.999
"""The largest share of all nodes that is solved for; at 1 the threshold would be minus infinity."""


def soft_top_k(scores: Tensor, size: Tensor, temperature: Tensor, weight: Tensor) -> Tensor:
    """Compute sigmoid((scores - tau) / temperature) with tau such that sum(weight * value) is `size`.

    scores, weight [..., n]; size, temperature [..., 1]; leading dimensions broadcast. Differentiable with respect to scores
    and weight through tau as well: one Newton step with a graph, at the root that was found without one, has the gradient of the
    implicit function. Computed in float64, and each row to its own end, so that no bit depends on the members of the same call.
    """
    kind = scores.dtype
    scores, size, temperature, weight = (values.double() for values in (scores, size, temperature, weight))
    with torch.no_grad():
        size = torch.minimum(size, _FULL * weight.sum(-1, keepdim=True))
        root, slope = _threshold(scores, size, temperature, weight)
    found = (weight * torch.sigmoid((scores - root) / temperature)).sum(-1, keepdim=True)
    return torch.sigmoid((scores - root - (found - found.detach()) / slope) / temperature).to(kind)


def _threshold(scores: Tensor, size: Tensor, temperature: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Find tau, and how fast the sum falls there, [..., 1]: Newton steps on the logit of the sum, kept between two bounds.

    The logit of one sigmoid is linear in tau, and that of the sum of many is nearly so. A step that would leave the bounds halves
    them instead.
    """
    whole = weight.sum(-1, keepdim=True)
    low, high = scores.amin(-1, keepdim=True) - 20 * temperature, scores.amax(-1, keepdim=True) + 20 * temperature
    root = (low + high) / 2
    for _ in range(_MOST):
        value = torch.sigmoid((scores - root) / temperature)
        open_ = weight * value
        found, slope = open_.sum(-1, keepdim=True), (open_ * (1 - value)).sum(-1, keepdim=True) / temperature
        far = (found - size).abs() > _CLOSE * size
        if far.device.type == "meta" or not bool(far.any()):
            break
        low, high = torch.where(found > size, root, low), torch.where(found > size, high, root)
        closed = whole - found
        step = (torch.log(found / size) - torch.log(closed / (whole - size))) * found * closed / (whole * slope)
        next_ = torch.where((root + step > low) & (root + step < high), root + step, (low + high) / 2)
        root = torch.where(far, next_, root)
    return root, slope.clamp(min=1e-9)
