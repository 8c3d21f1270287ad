"""The one operation of the method: a site's masked stream mixed with what its closed nodes output, by the effective mask.

Shapes: P members, R rows of a batch, T tokens, n width of a site.
"""

from typing import Any

import torch
from torch import Tensor


class Interpolate(torch.autograd.Function):
    """mask * masked + (1 - mask) * ablated, keeping only the difference of the two and the mask for the backward pass.

    masked [P, R, T, n], ablated [P or 1, R or 1, T or 1, n] or None for zero, mask [P, R or 1, 1, n].
    """

    @staticmethod
    def forward(ctx: Any, masked: Tensor, ablated: Tensor | None, mask: Tensor) -> Tensor:
        ctx.ablated = None if ablated is None else (ablated.shape, ablated.dtype)
        weight = mask.to(masked.dtype)
        ablated = None if ablated is None else ablated.to(masked.dtype)
        difference = masked if ablated is None else masked - ablated
        # As an activation of all rows that requires a gradient, of which few bits can be kept (few_bits.py); it gets none.
        ctx.save_for_backward(difference.flatten(0, 1).requires_grad_(), mask)
        # lerp is exact at both ends: an open gate gives the masked stream bit for bit, a closed one the ablated value.
        return masked * weight if ablated is None else torch.lerp(ablated, masked, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        difference, mask = ctx.saved_tensors
        difference = difference.view_as(gradient)
        to_masked = gradient * mask.to(gradient.dtype) if ctx.needs_input_grad[0] else None
        # Sums over tokens are in float32: gates and constants stay float32 whatever the base model computes in.
        to_ablated = to_mask = None
        if ctx.needs_input_grad[1]:
            shape, dtype = ctx.ablated
            wide = torch.promote_types(dtype, torch.float32)
            over_tokens = gradient.sum(dim=2, keepdim=True, dtype=wide) if shape[2] == 1 else gradient.to(wide)
            to_ablated = (over_tokens * (1 - mask)).sum_to_size(shape).to(dtype)
        if ctx.needs_input_grad[2]:
            wide = torch.promote_types(mask.dtype, torch.float32)
            to_mask = (gradient * difference).sum(dim=2, keepdim=True, dtype=wide)
            to_mask = to_mask.sum_to_size(mask.shape).to(mask.dtype)
        return to_masked, to_ablated, to_mask
