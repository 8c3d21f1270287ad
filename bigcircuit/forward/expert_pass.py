"""Experts of one layer in a pass: recorded, watched, or under gates of experts or of their neurons.

Shapes: P members, R rows, T tokens, N = R * T, k experts of a token, E experts, D hidden size.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bigcircuit.forward import expert_neurons, experts
from bigcircuit.model.granularity import EXPERT, EXPERT_NEURON
from bigcircuit.model.sites import expert_sizes

ROUTED = "routed"
"""Name under which a callback of plain passes gets 1 for each expert that the router chose for a token, else 0: [R, T, E]."""


def run_experts(
    module: Any,
    plain: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    *,
    masks: Mapping[str, Tensor],
    recorded: dict[str, Any],
    recording: bool,
    rows: int,
    watch: Callable[[str, Tensor], None] | None,
) -> Tensor:
    """Run a module of experts.

    plain: its own forward. inputs: hidden, and unless all experts see every token, the experts of each token and their weights.
    masks: of the layer by site. recorded: where the corrupted run leaves what closed nodes add, empty without one.
    recording: whether this is the corrupted run. rows: R. watch: gets the norms of what experts add in a plain
    pass under EXPERT, and which experts were chosen under ROUTED, [R, T, E] each.
    """
    if len(inputs) == 1:
        return _every_expert(module, plain, inputs[0], masks, recorded, recording, rows, watch)
    hidden, chosen, weights = inputs
    flat, chosen = hidden.reshape(-1, hidden.shape[-1]), chosen.long()
    if watch is not None:
        added, count = experts.by_expert(plain, flat, chosen, weights), expert_sizes(module)[0]
        watch(EXPERT, added.norms(rows, count))
        watch(ROUTED, added.routed(rows, count))
        return plain(*inputs)
    if recording and EXPERT_NEURON in masks:
        output, recorded[EXPERT_NEURON] = expert_neurons.record(module, plain, flat, chosen, weights)
    elif recording:
        recorded[EXPERT] = experts.by_expert(plain, flat, chosen, weights)
        output = recorded[EXPERT].together()
    elif EXPERT_NEURON in masks:
        closed = recorded.get(EXPERT_NEURON)
        output = expert_neurons.masked_neurons(module, plain, masks[EXPERT_NEURON], rows, closed, flat, chosen, weights)
    else:
        output = experts.masked_experts(plain, masks[EXPERT], rows, recorded.get(EXPERT), flat, chosen, weights)
    return output.view_as(hidden)


def _every_expert(
    module: Any,
    plain: Callable[..., Tensor],
    hidden: Tensor,
    masks: Mapping[str, Tensor],
    recorded: dict[str, Any],
    recording: bool,
    rows: int,
    watch: Callable[[str, Tensor], None] | None,
) -> Tensor:
    """Run experts that all see every token, see `experts.every_expert`."""
    if watch is None and not recording:
        return experts.every_expert(plain, masks[EXPERT], rows, recorded.get(EXPERT), hidden)
    output = plain(hidden)
    if watch is not None:
        norms = torch.linalg.vector_norm(output.float(), dim=-1)
        for name, value in ((EXPERT, norms), (ROUTED, hidden.any(-1).to(norms))):  # a weight of 0 makes inputs of 0
            watch(name, value.view(expert_sizes(module)[0], rows, -1).permute(1, 2, 0))
    else:
        recorded[EXPERT] = output
    return output
