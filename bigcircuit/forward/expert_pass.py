"""Experts of one layer in a pass: recorded, watched, or under gates of experts or of their neurons.

Shapes: P members, R rows, T tokens, N = R * T, k experts of a token, E experts, D hidden size.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bigcircuit.forward import expert_neurons, experts
from bigcircuit.forward.expert_constants import ClosedConstants
from bigcircuit.forward.pass_inputs import tokens_of
from bigcircuit.forward.pass_state import Pass
from bigcircuit.model.granularity import EXPERT, EXPERT_NEURON, VALUE_WIDTH, LayerShape


def run_experts(
    state: Pass, module: Any, shape: LayerShape, plain: Callable[..., Tensor], inputs: tuple[Tensor, ...]
) -> Tensor:
    """Run a module of experts in the layer that a pass has reached.

    shape: of this layer. plain: the module's own forward. inputs: hidden, and unless all experts see every token, the experts of
    each token and their weights.
    """
    if state.watch_experts is None and not {EXPERT, EXPERT_NEURON} & state.site_masks.keys():
        return plain(*inputs)
    if len(inputs) == 1:
        return _every_expert(state, shape, plain, inputs[0])
    hidden, chosen, weights = inputs
    flat, chosen = hidden.reshape(-1, hidden.shape[-1]), chosen.long()
    if (watcher := state.watch_experts) is not None:
        if EXPERT in watcher.sites:
            watcher.see(state.layer, EXPERT, experts.by_expert(plain, flat, chosen, weights))
        if EXPERT_NEURON in watcher.sites:
            found = expert_neurons.values_of(module, plain, flat, chosen, weights)[1]
            watcher.see(state.layer, EXPERT_NEURON, found)
        return plain(*inputs)
    rows, masks, recorded = len(state.batch.clean), state.site_masks, state.recorded
    if state.recording and EXPERT_NEURON in masks:
        output, recorded[EXPERT_NEURON] = expert_neurons.record(module, plain, flat, chosen, weights)
    elif state.recording:
        recorded[EXPERT] = experts.by_expert(plain, flat, chosen, weights)
        output = recorded[EXPERT].together()
    elif EXPERT_NEURON in masks:
        closed = recorded.get(EXPERT_NEURON, _constants(state, EXPERT_NEURON, shape))
        output = expert_neurons.masked_neurons(module, plain, masks[EXPERT_NEURON], rows, closed, flat, chosen, weights)
    else:
        closed = recorded.get(EXPERT, _constants(state, EXPERT, shape))
        output = experts.masked_experts(plain, masks[EXPERT], rows, closed, flat, chosen, weights)
    return output.view_as(hidden)


def _constants(state: Pass, site: str, shape: LayerShape) -> ClosedConstants | None:
    """Constants of the experts of this layer; None for ablations without any."""
    if not state.ablation.tensors():
        return None
    return ClosedConstants(state.ablation, site, state.layer, VALUE_WIDTH[site](shape), tokens_of(state.batch))


def _every_expert(state: Pass, shape: LayerShape, plain: Callable[..., Tensor], hidden: Tensor) -> Tensor:
    """Run experts that all see every token, see `experts.every_expert`."""
    rows, count = len(state.batch.clean), shape.experts
    if (watcher := state.watch_experts) is not None:
        output = plain(hidden)
        values = output.view(count, -1, output.shape[-1]).transpose(0, 1)
        chosen = hidden.view(count, -1, hidden.shape[-1]).any(-1).T  # a weight of 0 makes inputs of 0
        every = torch.arange(count, device=hidden.device).expand(len(values), -1)
        watcher.see(state.layer, EXPERT, experts.Added(values, every, chosen))
        return output
    if state.recording:
        output = plain(hidden)
        state.recorded[EXPERT] = output.view(1, count, rows, -1, output.shape[-1])
        return output
    closed, constants = state.recorded.get(EXPERT), _constants(state, EXPERT, shape)
    if closed is None and constants is not None:
        values = constants.values()
        closed = values.view(*values.shape[:3], count, -1).movedim(3, 1)
    return experts.every_expert(plain, state.site_masks[EXPERT], rows, closed, hidden)
