"""Gates whose sizes are settings: soft top-k of every granularity that has a size, coarse ones first.

A node counts by as much as the gates above it are open. `total` is met by the leaves that have no size of their own together,
in neurons, and `parameters` in its place in parameters (parameter_weights.py).

Shapes: P members, B examples, L layers, n nodes of a granularity in the widest layer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from bigcircuit.gates.members import Members
from bigcircuit.gates.parametrisation import LayerMasks
from bigcircuit.gates.schedules import allowed_size, temperature
from bigcircuit.gates.soft_top_k import soft_top_k
from bigcircuit.model.granularity import (
    COUNTED,
    GRANULARITIES,
    LEAVES,
    SITE_WIDTH,
    counted_sites,
    finest,
    fold_sites,
    spread,
)

_SIZE_LAYER = -1
"""Layer key of the noise by which sizes are drawn."""
_WHOLE_UPDATE = 0
"""Example key of that noise where all examples have the same size."""
_SMALLEST = 50
"""Sampled sizes go down to this fraction of the nodes: 1 / 50."""


def draw(population: Members, examples: Sequence[int], rounded: bool) -> LayerMasks:
    """Solve for layer index -> effective masks by site, [P, B or 1, site width]. rounded: to 0 or 1, with the soft gradient."""
    values = _solve(population, partial(_sizes_to_train, population, examples))
    if rounded:
        values = {name: soft + ((soft > 0.5).to(soft.dtype) - soft).detach() for name, soft in values.items()}

    def masks(index: int) -> dict[str, Tensor]:
        shape = population.shapes[index]
        layer = {name: value[:, :, index, : GRANULARITIES[name].width(shape)] for name, value in values.items()}
        return fold_sites(layer, shape)

    return masks


def open_shares(population: Members) -> dict[str, Tensor]:
    """Compute how far each gate is open at the size that is allowed now, by granularity float64 [P, L, n]."""
    solved = _solve(population, partial(_allowed_sizes, population))
    return {name: values[:, 0].double() for name, values in solved.items()}


def decided(population: Members, member: int) -> dict[str, Tensor]:
    """Subtract the threshold of the asked sizes from log_alpha of a member: gates above 0 are open. By granularity, [L, n]."""
    log_alpha = {name: values.detach().double() for name, values in population.members[member].log_alpha.items()}
    target, found = population.members[member].config.target, dict[str, Tensor]()
    sizes = target.sizes()
    for asked, names in _groups(sizes, list(log_alpha)):
        chosen = {name: (values > 0).double() for name, values in found.items()}
        scores = torch.cat([log_alpha[name].flatten() for name in names])
        if asked == "total" and target.parameters is not None:
            budget = population.parameter_weights(names)
            weight = budget.weigh(scores, _weights(population, names, chosen, in_neurons=False))
            size = target.parameters * budget.total - float(budget.outside(chosen))
            border = _border(scores[weight > 0], weight[weight > 0], size, above=False)
        else:
            weight = _weights(population, names, chosen, asked == "total")
            border = _border(scores[weight > 0], weight[weight > 0], _left(asked, sizes))
        found |= {name: log_alpha[name] - border for name in names}
    return {name: values.float() for name, values in found.items()}


def _border(scores: Tensor, weight: Tensor, size: float, above: bool = True) -> Tensor:
    """Threshold of a size: half-way between the weakest of the strongest nodes that together weigh `size`, and the next node.

    above: whether they weigh at least the size, else at most; one node is above the threshold in any case.
    """
    order = torch.argsort(scores, descending=True)
    held = torch.cumsum(weight[order], 0)
    count = int((held < size).sum()) + 1 if above else max(int((held <= size).sum()), 1)
    strongest = torch.cat([scores[order], scores[order[-1:]] - 1])
    return strongest[min(count, len(order)) - 1 : min(count, len(order)) + 1].mean()


def _groups(sizes: Mapping[str, int], names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Group the granularities by the target that each meets, coarse ones first and `total` last."""
    own = [(name, [name]) for name in GRANULARITIES if name in names and name in sizes]
    rest = [name for name in names if name not in sizes]
    return own + ([("total", rest)] if "total" in sizes and rest else [])


def _left(asked: str, sizes: Mapping[str, int]) -> int:
    """Size of a group: `total` without the neurons that have a target of their own."""
    own = sum(sizes.get(LEAVES[site], 0) for site in COUNTED) if asked == "total" else 0
    return max(sizes[asked] - own, 1)


class _Budget(NamedTuple):
    """What the nodes of a group may weigh together, in nodes, neurons or parameters."""

    asked: str
    """Target that the group meets."""
    weight: Tensor
    """Weight of each node, [P or 1, B or 1, N]."""
    everything: Sequence[float]
    """Weight of all nodes of the group, and of those that count beside them, by member."""
    beside: Tensor | None
    """Part of the size that nodes outside of the group have, [P, B or 1, 1]; None where these do not count."""


def _sizes_to_train(population: Members, examples: Sequence[int], budget: _Budget) -> Tensor:
    """Sizes of a group in training: of every example, [P, B, 1], where they are sampled; else one for the update, [P, 1, 1].

    In float64 for the reason given in hard_concrete.py."""
    if population.members[0].config.gates.sampled_sizes:
        drawn = population.uniform(_SIZE_LAYER, examples, 1).double()
        everything = torch.tensor(budget.everything, dtype=drawn.dtype, device=drawn.device).view(-1, 1, 1)
        return (everything * torch.exp(-math.log(_SMALLEST) * drawn)).float()
    allowed, least = (sizes.double() for sizes in _range(population, budget))
    share = population.uniform(_SIZE_LAYER, [_WHOLE_UPDATE], 1).double()
    return (allowed * (least / allowed) ** share).float()


def _allowed_sizes(population: Members, budget: _Budget) -> Tensor:
    """Sizes that a group is allowed now, [P, 1, 1]."""
    return _range(population, budget)[0]


def _range(population: Members, budget: _Budget) -> tuple[Tensor, Tensor]:
    """Sizes that a group is allowed now, and the least sizes that an update looks ahead to, [P, 1, 1] each."""
    allowed, least = [], []
    for member, everything in zip(population.members, budget.everything, strict=True):
        config, target = member.config, member.config.target
        size: float = _left(budget.asked, target.sizes())
        if budget.asked == "total" and target.parameters is not None:
            size = target.parameters * everything
        allowed.append(allowed_size(config.train, everything, size, member.done))
        least.append(min(size, everything) if config.gates.look_ahead else allowed[-1])
    return population.column(allowed), population.column(least)


def _solve(population: Members, sizes: Callable[[_Budget], Tensor]) -> dict[str, Tensor]:
    """Solve for the soft values of all gates, by granularity [P, B or 1, L, n]. sizes: of a group, [P, B or 1, 1]."""
    stacked, values = population.stack(), dict[str, Tensor]()
    soft = population.column([temperature(member.config.gates, member.done) for member in population.members])
    for asked, names in _groups(population.members[0].config.target.sizes(), list(stacked)):
        scores = torch.cat([stacked[name].unsqueeze(1).flatten(2) for name in names], -1)
        budget = _budget(population, asked, names, values, scores)
        size = sizes(budget)
        if budget.beside is not None:
            size = (size.double() - budget.beside).clamp(min=1)
        solved = soft_top_k(scores, size, soft, budget.weight)
        parts = solved.split([stacked[name][0].numel() for name in names], -1)
        values |= {name: part.unflatten(-1, stacked[name].shape[1:]) for name, part in zip(names, parts, strict=True)}
    return values


def _budget(
    population: Members, asked: str, names: Sequence[str], above: Mapping[str, Tensor], scores: Tensor
) -> _Budget:
    """Weigh the nodes of a group, under the gates that are solved already."""
    neurons = sum(width * _counts(population, name, asked == "total")[i] for name in names
                  for i, width in enumerate(population.widths(name)))  # fmt: skip
    weight = _weights(population, names, above, asked == "total")
    everything: list[float] = [neurons] * len(population)
    shares = [member.config.target.parameters for member in population.members]
    if asked != "total" or shares.count(None) == len(shares):
        return _Budget(asked, weight, everything, None)
    weighed = torch.tensor([share is not None for share in shares], device=population.device).view(-1, 1, 1)
    weights = population.parameter_weights(names)
    own = weights.weigh(scores.detach().double(), _weights(population, names, above, in_neurons=False).detach())
    everything = [neurons if share is None else weights.total for share in shares]
    return _Budget(
        asked, torch.where(weighed, own, weight.double()), everything, torch.where(weighed, weights.outside(above), 0.0)
    )


def _weights(population: Members, names: Sequence[str], above: Mapping[str, Tensor], in_neurons: bool) -> Tensor:
    """Weigh each node of a group, [..., N], see `_weight`."""
    found = [_weight(population, name, above, in_neurons).flatten(-2) for name in names]
    leading = torch.broadcast_shapes(*(one.shape[:-1] for one in found))
    return torch.cat([one.expand(*leading, -1) for one in found], -1)


def _weight(population: Members, name: str, above: Mapping[str, Tensor], in_neurons: bool) -> Tensor:
    """Weigh each node of a group, [..., L, n]: 0 for padding, times the openness of the gates above; for `total` in neurons."""
    widths = population.widths(name)
    rows = []
    for index, (width, count) in enumerate(zip(widths, _counts(population, name, in_neurons), strict=True)):
        row = torch.full((width,), float(count), device=population.device)
        for parent in GRANULARITIES[name].parents:
            if parent in above:
                there = population.widths(parent)[index]
                row = row * spread(above[parent][..., index, :there], width)
        rows.append(pad(row, (0, max(1, *widths) - width)))
    return torch.stack(rows, -2)


def _counts(population: Members, name: str, in_neurons: bool) -> list[int]:
    """Weight of a node of each layer by itself: 1, or the number of neurons for which its gate is the finest."""
    if not in_neurons:
        return [1] * len(population.shapes)
    names = list(population.members[0].log_alpha)
    sites = [site for site in counted_sites(names) if finest(names, site) == name]
    return [
        sum(SITE_WIDTH[site](shape) for site in sites) // max(GRANULARITIES[name].width(shape), 1)
        for shape in population.shapes
    ]
