"""Gates on the experts of a mixture.

A node is an expert at a token. Its value is routing weight x output, 0 where the router did not choose it. So a gate multiplies
the routing weight, and closed experts add what they added for the corrupted token, for which the router may have chosen others:
out = sum_k w_k g(e_k) E(x, e_k) + sum_k (1 - g(e'_k)) w'_k E(x', e'_k). The router is no node: it reads the stream that it is in.
Under ablations with constants the second sum is over all experts, see `expert_constants.py`.

Shapes: R rows, T tokens, N = R * T, k experts of a token, E experts, D hidden size, n values of a node.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigcircuit.forward.expert_constants import ClosedConstants, write_experts

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
    """Values of the experts of each token: what they add to the residual stream, or routing weight x activations."""

    values: Tensor
    """[N, k, n]"""
    experts: Tensor
    """int64 [N, k]"""
    chosen: Tensor | None = None
    """bool [N, k], which of them the router chose; None for all."""

    def of(self, tokens: Tensor) -> "Added":
        """Select tokens, by a mask [N]."""
        return Added(self.values[tokens], self.experts[tokens], None if self.chosen is None else self.chosen[tokens])

    def together(self) -> Tensor:
        """Add up the experts of each token, [N, n]."""
        return self.values.sum(1)

    def norms(self, count: int) -> Tensor:
        """Norm of the values of each of `count` experts, 0 where it was not chosen: [N, E]."""
        return self._by_expert(torch.linalg.vector_norm(self.values.float(), dim=-1), count)

    def routed(self, count: int) -> Tensor:
        """Say which of `count` experts were chosen, 1 or 0: [N, E]."""
        ones = torch.ones(self.experts.shape, device=self.experts.device)
        return self._by_expert(ones if self.chosen is None else self.chosen.to(ones), count)

    def _by_expert(self, numbers: Tensor, count: int) -> Tensor:
        """Lay out numbers of the experts of each token, [N, k], by expert, [N, E]."""
        return numbers.new_zeros(len(numbers), count).scatter_(1, self.experts, numbers)


def by_expert(plain: Forward, hidden: Tensor, experts: Tensor, weights: Tensor) -> Added:
    """Run experts with every (token, expert) as a row of its own: as many rows as the implementations of transformers multiply."""
    pairs = hidden.repeat_interleave(experts.shape[1], dim=0)
    values = plain(pairs, experts.reshape(-1, 1), weights.reshape(-1, 1))
    return Added(values.view(*experts.shape, -1), experts)


def masked_experts(
    plain: Forward,
    masks: Tensor,
    rows: int,
    closed: Added | ClosedConstants | None,
    hidden: Tensor,
    experts: Tensor,
    weights: Tensor,
) -> Tensor:
    """Run the experts of P members under masks, [P, R or 1, E]. closed: what closed experts add."""
    outputs = []
    # One call a member: which rows an expert multiplies at once decides their last bits, and these are then its own.
    for member, mask in enumerate(masks):
        x, own, weight = (t.chunk(len(masks))[member] for t in (hidden, experts, weights))
        out = plain(x, own, weight * of_tokens(mask, own, rows).to(weight.dtype))
        if isinstance(closed, ClosedConstants):
            out = out + closed.added(member, 1 - mask, rows, len(x) // rows, write_experts).to(out.dtype)
        elif closed is not None:
            shut = 1 - of_tokens(mask, closed.experts, rows)
            out = out + torch.einsum("nk,nkd->nd", shut.to(out.dtype), closed.values.to(out.dtype))
        outputs.append(out)
    return torch.cat(outputs)


def every_expert(
    plain: Callable[[Tensor], Tensor], masks: Tensor, rows: int, closed: Tensor | None, hidden: Tensor
) -> Tensor:
    """Run experts that all see every token, scaled by its routing weight: hidden [E * P * N, D], experts first (Llama 4).

    masks: [P, R or 1, E]. closed: what closed ones output, [P or 1, E, R or 1, T or 1, D]. One call a member.
    """
    members, experts = len(masks), masks.shape[-1]
    outputs = []
    for member, part in enumerate(hidden.view(experts, members, -1, hidden.shape[-1]).unbind(1)):
        out = plain(part.reshape(-1, hidden.shape[-1])).view(experts, rows, -1, hidden.shape[-1])
        gate = masks[member].expand(rows, -1).T[:, :, None, None].to(out.dtype)
        if closed is None:
            out = out * gate
        else:
            out = torch.lerp(closed[member if len(closed) > 1 else 0].to(out.dtype).expand_as(out), out, gate)
        outputs.append(out)
    return torch.stack([out.flatten(1, 2) for out in outputs], 1).flatten(0, 2)


def of_tokens(mask: Tensor, experts: Tensor, rows: int) -> Tensor:
    """Gates of the experts of each token: mask [R or 1, E] -> [N, k]."""
    places = experts.view(rows, -1)
    return mask.expand(rows, -1).gather(1, places).view(experts.shape)
