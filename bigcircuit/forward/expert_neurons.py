"""Gates on the neurons of experts.

A node is a neuron of an expert at a token, its value routing weight x activation. All implementations of experts in transformers
but the eager one send the activations through one function of the module, so they are reached by setting it for a call, without a
copy of the model's code. Closed neurons add what they added for the corrupted token, with its experts and weights; under
ablations with constants they add these at every token, as if the router had chosen all experts. The bias of an expert's down
projection has the gate of the most open neuron of the expert, and its constant is that of the routing weight.

Shapes: P members, R rows, T tokens, N = R * T, k experts of a token, S = N * k, E experts, F neurons of an expert, D hidden size.
"""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigcircuit.errors import UserError
from bigcircuit.forward.expert_constants import ClosedConstants
from bigcircuit.forward.experts import Added, Forward, of_tokens

Change = Callable[[Tensor], Tensor]
"""Activations of all (token, expert) pairs, [S, F], to others. Pairs are in the order of `_order`."""
_ORDERED = ("grouped_mm", "batched_mm")
"""Implementations of experts whose activations come in a known order."""
_THIN = 16
"""Rows of the matrix before the activation where its product is not used: rows of 16 numbers are aligned in every dtype."""


class Activations(NamedTuple):
    """Activations of the experts of each token."""

    values: Tensor
    """[S, F], pairs in the order of `_order`."""
    experts: Tensor
    """int64 [N, k]"""
    weights: Tensor
    """[N, k]"""


def refusal(module: Any) -> str | None:
    """Say why the neurons of a module of experts cannot be closed; None if they can."""
    if not hasattr(module, "is_concatenated"):
        return "its experts are of a form of their own"
    if getattr(module, "has_post_expert_norm", False):
        return "a norm follows each of its experts"
    return None


def _order(module: Any, experts: Tensor) -> Tensor:
    """Places of the (token, expert) pairs, int64 [S], in the order in which an implementation runs them: grouped ones sort them."""
    flat = experts.reshape(-1)
    if module.config._experts_implementation == "grouped_mm" and not flat.is_meta:
        return torch.sort(flat)[1]
    return torch.arange(len(flat), device=flat.device)


def _through(
    module: Any,
    plain: Forward,
    change: Change,
    hidden: Tensor,
    experts: Tensor,
    weights: Tensor,
    instead: Mapping[str, Any] = MappingProxyType({}),
) -> Tensor:
    """Run experts with other activations.

    instead: attributes of the module to use for this call, in which the activations do not depend on what is before them.
    Raises UserError for an implementation whose activations are not reached, or come in another order.
    """
    name, called = "_apply_gate" if module.has_gate else "act_fn", []
    real, implementation = getattr(module, name), module.config._experts_implementation

    def changed(inner: Tensor) -> Tensor:
        called.append(True)
        return change(inner) if instead else change(real(inner))

    own = {key: module.__dict__[key] for key in instead if key in module.__dict__}
    module.__dict__ |= {**instead, name: changed}
    try:
        output = plain(hidden, experts, weights) if implementation in _ORDERED else hidden
    finally:
        for key in (*instead, name):
            del module.__dict__[key]
        module.__dict__ |= own
    if not called:
        raise UserError(
            f"gates.granularities has expert_neuron, which {implementation} experts do not show; use expert in its place"
        )
    return output


def record(module: Any, plain: Forward, hidden: Tensor, experts: Tensor, weights: Tensor) -> tuple[Tensor, Activations]:
    """Run experts and keep their activations."""
    kept: list[Tensor] = []

    def keep(values: Tensor) -> Tensor:
        kept.append(values)
        return values

    output = _through(module, plain, keep, hidden, experts, weights)
    return output, Activations(kept[0], experts, weights)


def values_of(module: Any, plain: Forward, hidden: Tensor, experts: Tensor, weights: Tensor) -> tuple[Tensor, Added]:
    """Run experts and return their output with the values of their neurons, [N, k, F].

    Where down projections have biases F + 1: the last one is the routing weight.
    """
    output, found = record(module, plain, hidden, experts, weights)
    order = _order(module, experts)
    values = torch.empty_like(found.values).index_copy_(0, order, found.values).view(*experts.shape, -1)
    values = values * weights.unsqueeze(-1).to(values.dtype)
    if module.has_bias:
        values = torch.cat([values, weights.unsqueeze(-1).to(values.dtype)], -1)
    return output, Added(values, experts)


def masked_neurons(
    module: Any,
    plain: Forward,
    masks: Tensor,
    rows: int,
    closed: Activations | ClosedConstants | None,
    hidden: Tensor,
    experts: Tensor,
    weights: Tensor,
) -> Tensor:
    """Run the experts of P members under masks of their neurons, [P, R or 1, E * F]; one call a member, as in `masked_experts`."""
    outputs = []
    for member, mask in enumerate(masks):
        x, own, weight = (t.chunk(len(masks))[member] for t in (hidden, experts, weights))
        by_expert = mask.view(len(mask), module.num_experts, -1)
        most = by_expert.amax(-1) if module.has_bias else None  # gates of the biases
        out = _through(module, plain, partial(_times, _of_pairs(module, by_expert, own, rows)), x, own, weight)
        if most is not None:
            out = out + _biases(module, of_tokens(most - 1, own, rows), own, weight)
        if isinstance(closed, ClosedConstants):
            shut = 1 - (by_expert if most is None else torch.cat([by_expert, most.unsqueeze(-1)], -1))
            write = partial(_write_constants, module, plain, x[:1])
            out = out + closed.added(member, shut, rows, len(x) // rows, write).to(out.dtype)
        elif closed is not None:
            shut = 1 - _of_pairs(module, by_expert, closed.experts, rows)
            out = out + _closed(module, plain, _times(shut, closed.values), closed.experts, closed.weights, x[:1])
            if most is not None:
                out = out + _biases(module, of_tokens(1 - most, closed.experts, rows), closed.experts, closed.weights)
        outputs.append(out)
    return torch.cat(outputs)


def _times(gates: Tensor, values: Tensor) -> Tensor:
    return values * gates.to(values.dtype)


def _of_pairs(module: Any, masks: Tensor, experts: Tensor, rows: int) -> Tensor:
    """Gates of the neurons of each (token, expert): masks [R or 1, E, F] -> [S, F], pairs in the order of `_order`."""
    order = _order(module, experts)
    row = order // (len(order) // rows) if len(masks) > 1 else torch.zeros_like(order)
    return masks[row, experts.reshape(-1)[order]]


def _write_constants(module: Any, plain: Forward, like: Tensor, values: Tensor, shut: Tensor) -> Tensor:
    """Add up the constants of closed neurons: values [T or 1, E * F], shut [R or 1, E, F], of F + 1 with biases.

    Returns [R or 1, T or 1, D].
    """
    count = module.num_experts
    closed = shut.unsqueeze(1) * values.view(1, len(values), count, -1)
    rows, length = closed.shape[:2]
    closed = closed.flatten(0, 1).to(like.dtype)
    experts = torch.arange(count, device=like.device).expand(rows * length, -1)
    ones = torch.ones(experts.shape, dtype=like.dtype, device=like.device)
    inner = closed[..., :-1] if module.has_bias else closed
    found = _closed(module, plain, inner.flatten(0, 1)[_order(module, experts)], experts, ones, like)
    if module.has_bias:
        found = found + _biases(module, closed[..., -1], experts, ones)
    return found.view(rows, length, -1)


def _closed(module: Any, plain: Forward, values: Tensor, experts: Tensor, weights: Tensor, like: Tensor) -> Tensor:
    """Project activations [S, F] of closed neurons, pairs in the order of `_order`, without biases."""
    nothing = like.detach().expand(len(experts), -1)
    name = "gate_up_proj" if module.has_gate else "up_proj"
    # The activations are known, so next to nothing is computed before them.
    weight, rows = getattr(module, name), 2 if module.is_transposed else 1
    thin = weight.narrow(rows, 0, min(_THIN, weight.shape[rows]))
    instead = {"has_bias": False, name: thin}
    return _through(module, plain, lambda _: values, nothing, experts, weights, instead)


def _biases(module: Any, gates: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """Add up the biases of the down projections of each token's experts, by gates [N, k]: [N, D]."""
    return torch.einsum("nk,nkd->nd", (gates * weights).to(weights.dtype), module.down_proj_bias[experts])
