"""Experts of a mixture that are taken out: a layer holds the kept experts alone, each as wide as the widest of them.

The router stays whole, because it chooses among all experts and no others may take their places: a token that chose an expert that
is not there is sent to the first one with a weight of 0.

Shapes: E experts, F neurons of each, E' and F' those of the written layer, N tokens, k experts of a token, D hidden size.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bigcircuit.errors import UserError
from bigcircuit.export.cut import PADDING
from bigcircuit.model.granularity import EXPERT, EXPERT_NEURON, LEAVES
from bigcircuit.model.sites import FrozenModel

_ALIGNED = 8
"""Rows of grouped products of torch begin at multiples of 16 bytes: 8 numbers in two bytes each."""
_UP, _DOWN = ("gate_up_proj", "up_proj", "gate_up_proj_bias", "up_proj_bias"), ("down_proj", "down_proj_bias")


class ExpertCut(NamedTuple):
    """What is kept of the experts of a layer."""

    kept: list[int]
    """Numbers of the experts, E' of them; at least one."""
    neurons: Tensor
    """Neurons of each, int64 [E', F'], PADDING where an expert keeps fewer than another."""

    def written(self, module: Any, name: str, base: Tensor) -> Tensor:
        """Cut a parameter of the module of all experts. name: within the module; base: [E, ..]."""
        chosen = base[self.kept]
        axis = _axis(module, name)
        if axis is None:
            return chosen
        places = self.neurons.clamp(min=0)
        width = base.shape[axis] // _times(module, name)
        if _times(module, name) == 2:
            halves = (places, places + width) if module.is_concatenated else (2 * places, 2 * places + 1)
            padding = [self.neurons == PADDING] * 2
            joined = torch.cat if module.is_concatenated else _interleaved
            places, closed = joined(halves, 1), joined(padding, 1)
        else:
            closed = self.neurons == PADDING
        shape = [len(self.kept)] + [places.shape[1] if axis == place else 1 for place in range(1, base.ndim)]
        size = [*chosen.shape[:axis], places.shape[1], *chosen.shape[axis + 1 :]]
        made = chosen.gather(axis, places.view(shape).expand(size))
        return made.masked_fill(closed.view(shape), 0)


def _interleaved(parts: Any, _: int) -> Tensor:
    return torch.stack(list(parts), dim=2).flatten(1)


def _times(module: Any, name: str) -> int:
    """How many rows of a parameter a neuron has: two where gate and up are one parameter."""
    return 2 if name in _UP and getattr(module, "has_gate", False) and name.startswith("gate_up") else 1


def _axis(module: Any, name: str) -> int | None:
    """Dimension of a parameter along which neurons are; None for the bias of the down projection."""
    if name.endswith("_bias"):
        return None if name in _DOWN else 1
    inputs = 2 if module.is_transposed else 1
    return inputs if name in _UP else 3 - inputs


def expert_cuts(
    frozen: FrozenModel, masks: Mapping[str, Tensor], subject: str, multiple_of: int = 1
) -> list[ExpertCut | None]:
    """Find what is kept of the experts of every layer; None for a layer without experts.

    multiple_of: the written widths are padded to a multiple of this, and of the numbers that grouped products take. Raises
    UserError, which begins with `subject`, for experts of a form of their own.
    """
    found: list[ExpertCut | None] = []
    for index, layer in enumerate(frozen.layers):
        module: Any = layer.sites.get(EXPERT)
        if module is None:
            found.append(None)
            continue
        names = {name for name, _ in module.named_parameters()}
        if not hasattr(module, "is_concatenated") or names - {*_UP, *_DOWN}:
            raise UserError(f"{subject} has experts of a form of their own, which are not cut; use --format zeroed")
        opened = masks[LEAVES[EXPERT]][index, : layer.shape.experts]
        width = layer.shape.expert_width
        neurons = opened.unsqueeze(1).expand(-1, width)
        if LEAVES[EXPERT_NEURON] in masks:
            flat = masks[LEAVES[EXPERT_NEURON]][index, : layer.shape.experts * width]
            neurons = flat.view(-1, width)
        kept = opened.nonzero().flatten().tolist() or [0]
        rows = [neurons[expert].nonzero().flatten() for expert in kept]
        multiple = math.lcm(_ALIGNED, multiple_of)
        padded = -(-max(1, *(len(row) for row in rows)) // multiple) * multiple
        places = torch.full((len(kept), max(min(padded, width), *(len(row) for row in rows))), PADDING)
        for place, row in enumerate(rows):
            places[place, : len(row)] = row
        found.append(ExpertCut(kept, places))
    return found


class _SentToKept:
    """Hook before a module of experts: numbers of all experts become those of the kept ones."""

    def __init__(self, kept: list[int], experts: int) -> None:
        self._kept, self._experts = kept, experts

    def __call__(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, experts, weights, *others = args
        places = torch.full((self._experts,), -1, device=experts.device)
        places[self._kept] = torch.arange(len(self._kept), device=experts.device)
        found = places[experts]
        return hidden, found.clamp(min=0), weights * (found >= 0).to(weights.dtype), *others


def resize_experts(module: Any, kept: list[int], neurons: int) -> None:
    """Give a module of experts the sizes of a cut. Weights are new, without values of the old ones."""
    experts = len(module.down_proj)
    for name, parameter in list(module.named_parameters()):
        size, axis = [len(kept), *parameter.shape[1:]], _axis(module, name)
        if axis is not None:
            size[axis] = neurons * _times(module, name)
        setattr(module, name, nn.Parameter(parameter.new_empty(size), requires_grad=parameter.requires_grad))
    for name, value in (("num_experts", len(kept)), ("intermediate_dim", neurons), ("intermediate_size", neurons)):
        if hasattr(module, name):
            setattr(module, name, value)
    module.register_forward_pre_hook(_SentToKept(kept, experts))
