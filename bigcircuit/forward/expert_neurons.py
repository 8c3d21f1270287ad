"""Gates on the neurons of experts.

A node is a neuron of an expert at a token, its value routing weight x activation. All implementations of experts in transformers
but the eager one send the activations through one function of the module, so they are reached by setting it for a call, without a
copy of the model's code. Closed neurons add what they added for the corrupted token, with its experts and weights. The bias of an
expert's down projection is added where any of its neurons is open.

Shapes: P members, R rows, T tokens, N = R * T, k experts of a token, S = N * k, E experts, F neurons of an expert, D hidden size.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigcircuit.errors import UserError
from bigcircuit.forward.experts import Forward

Change = Callable[[Tensor], Tensor]
"""Activations of all (token, expert) pairs, [S, F], to others."""


class Activations(NamedTuple):
    """Activations of the experts of each token."""

    values: Tensor
    """[S, F]"""
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


def _through(module: Any, plain: Forward, change: Change, hidden: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """Run experts with other activations."""
    name, called = "_apply_gate" if module.has_gate else "act_fn", []
    real = getattr(module, name)
    # The grouped implementation sorts the pairs by expert, in the same way.
    order = torch.sort(experts.reshape(-1))[1]
    is_sorted = module.config._experts_implementation == "grouped_mm" and not hidden.is_meta

    def instead(inner: Tensor) -> Tensor:
        called.append(True)
        found = real(inner)
        if not is_sorted:
            return change(found)
        return change(torch.empty_like(found).index_copy(0, order, found))[order]

    module.__dict__[name] = instead
    try:
        output = plain(hidden, experts, weights)
    finally:
        del module.__dict__[name]
    if not called:
        raise UserError(
            f"gates.granularities has expert_neuron, which {module.config._experts_implementation} experts do not "
            "show; use expert in its place"
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


def masked_neurons(
    module: Any,
    plain: Forward,
    masks: Tensor,
    rows: int,
    closed: Activations | None,
    hidden: Tensor,
    experts: Tensor,
    weights: Tensor,
) -> Tensor:
    """Run the experts of P members under masks of their neurons, [P, R or 1, E * F]; one call a member, as in `masked_experts`."""
    outputs = []
    for mask, *part in zip(masks, *(t.chunk(len(masks)) for t in (hidden, experts, weights)), strict=True):
        x, own, weight = part
        by_expert = mask.view(len(mask), module.num_experts, -1)
        gates = _of_pairs(by_expert, own, rows)
        out = _through(module, plain, partial(_times, gates), x, own, weight)
        out = out + _bias(module, gates - 1, own, weight)
        if closed is not None:
            shut = 1 - _of_pairs(by_expert, closed.experts, rows)
            out = out + _without_bias(module, plain, closed, shut, x[:1]) + _bias(module, shut, *closed[1:], least=True)
        outputs.append(out)
    return torch.cat(outputs)


def _times(gates: Tensor, values: Tensor) -> Tensor:
    return values * gates.to(values.dtype)


def _of_pairs(masks: Tensor, experts: Tensor, rows: int) -> Tensor:
    """Gates of the neurons of each (token, expert): masks [R or 1, E, F] -> [S, F]."""
    ids = experts.reshape(rows, -1)
    row = torch.arange(rows, device=ids.device).unsqueeze(1) if len(masks) > 1 else torch.zeros_like(ids)
    return masks[row.expand_as(ids), ids].flatten(0, 1)


def _without_bias(module: Any, plain: Forward, closed: Activations, shut: Tensor, like: Tensor) -> Tensor:
    """Project what closed neurons had on the corrupted prompt, without biases."""
    values, experts, weights = closed
    nothing = like.detach().expand(len(experts), -1)
    has_bias, module.has_bias = module.has_bias, False
    try:
        return _through(module, plain, lambda _: _times(shut, values), nothing, experts, weights)
    finally:
        module.has_bias = has_bias


def _bias(module: Any, gates: Tensor, experts: Tensor, weights: Tensor, least: bool = False) -> Tensor | int:
    """Biases of down projections by the gate of the most open neuron of each expert. least: gates say how far they are closed."""
    if not module.has_bias:
        return 0
    gate = (gates.amin(-1) if least else gates.amax(-1)).view(experts.shape) * weights
    return torch.einsum("nk,nkd->nd", gate.to(weights.dtype), module.down_proj_bias[experts])
