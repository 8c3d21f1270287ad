"""Gates on the experts of a mixture.

A node is an expert at a token. Its value is routing weight x output, 0 where the router did not choose it. So a gate multiplies
the routing weight, and closed experts add what they added for the corrupted token, for which the router may have chosen others:
out = sum_k w_k g(e_k) E(x, e_k) + sum_k (1 - g(e'_k)) w'_k E(x', e'_k). The router is no node: it reads the stream that it is in.

Shapes: R rows, T tokens, N = R * T, k experts of a token, E experts, D hidden size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

Forward = Callable[[Tensor, Tensor, Tensor], Tensor]
"""hidden [N, D], experts of each token [N, k], their weights [N, k] -> [N, D]."""


def without_data(module: Any) -> Forward:
    """Make experts for the meta device, of the same products and sizes: torch has no grouped product of float32 there."""

    def run(hidden: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        up, down = (module.gate_up_proj if module.has_gate else module.up_proj)[0], module.down_proj[0]
        if not module.is_transposed:
            up, down = up.T, down.T
        inner = hidden.repeat_interleave(experts.shape[1], dim=0) @ up
        inner = module._apply_gate(inner) if module.has_gate else module.act_fn(inner)
        return ((inner @ down) * weights.reshape(-1, 1)).view(*experts.shape, -1).sum(1).to(hidden.dtype)

    return run


class Added(NamedTuple):
    """What the experts of each token add to the residual stream."""

    values: Tensor
    """[N, k, D]"""
    experts: Tensor
    """int64 [N, k]"""

    def together(self) -> Tensor:
        """Add up the experts of each token, [N, D]."""
        return self.values.sum(1)

    def norms(self, rows: int, count: int) -> Tensor:
        """Norm of what each of `count` experts adds, 0 where it was not chosen: [R, T, E]."""
        norms = torch.linalg.vector_norm(self.values.float(), dim=-1)
        found = norms.new_zeros(len(norms), count).scatter_(1, self.experts, norms)
        return found.view(rows, -1, count)

    def routed(self, rows: int, count: int) -> Tensor:
        """Say which of `count` experts were chosen, 1 or 0: [R, T, E]."""
        found = torch.zeros(len(self.experts), count, device=self.experts.device).scatter_(1, self.experts, 1.0)
        return found.view(rows, -1, count)


def by_expert(plain: Forward, hidden: Tensor, experts: Tensor, weights: Tensor) -> Added:
    """Run experts with every (token, expert) as a row of its own: as many rows as the implementations of transformers multiply."""
    pairs = hidden.repeat_interleave(experts.shape[1], dim=0)
    values = plain(pairs, experts.reshape(-1, 1), weights.reshape(-1, 1))
    return Added(values.view(*experts.shape, -1), experts)


def masked_experts(
    plain: Forward, masks: Tensor, rows: int, closed: Added | None, hidden: Tensor, experts: Tensor, weights: Tensor
) -> Tensor:
    """Run the experts of P members under masks, [P, R or 1, E]. closed: what closed experts add, the same for all members."""
    outputs = []
    # One call a member: which rows an expert multiplies at once decides their last bits, and these are then its own.
    for mask, *part in zip(masks, *(t.chunk(len(masks)) for t in (hidden, experts, weights)), strict=True):
        x, own, weight = part
        out = plain(x, own, weight * of_tokens(mask, own, rows).to(weight.dtype))
        if closed is not None:
            shut = 1 - of_tokens(mask, closed.experts, rows)
            out = out + torch.einsum("nk,nkd->nd", shut.to(out.dtype), closed.values.to(out.dtype))
        outputs.append(out)
    return torch.cat(outputs)


def every_expert(
    plain: Callable[[Tensor], Tensor], masks: Tensor, rows: int, closed: Tensor | None, hidden: Tensor
) -> Tensor:
    """Run experts that all see every token, scaled by its routing weight: hidden [E * P * N, D], experts first (Llama 4).

    masks: [P, R or 1, E]. closed: what they output on the corrupted prompt, [E * N, D]. One call a member.
    """
    members, experts = len(masks), masks.shape[-1]
    outputs = []
    for mask, part in zip(masks, hidden.view(experts, members, -1, hidden.shape[-1]).unbind(1), strict=True):
        out = plain(part.reshape(-1, hidden.shape[-1])).view(experts, rows, -1, hidden.shape[-1])
        gate = mask.expand(rows, -1).T[:, :, None, None].to(out.dtype)
        outputs.append(out * gate if closed is None else torch.lerp(closed.view_as(out), out, gate))
    return torch.stack([out.flatten(1, 2) for out in outputs], 1).flatten(0, 2)


def of_tokens(mask: Tensor, experts: Tensor, rows: int) -> Tensor:
    """Gates of the experts of each token: mask [R or 1, E] -> [N, k]."""
    places = experts.view(rows, -1)
    return mask.expand(rows, -1).gather(1, places).view(experts.shape)
