"""Gates whose sizes are settings: soft top-k of every granularity that has a size, coarse ones first.

A node counts by as much as the gates above it are open. `total` is met by the leaves that have no size of their own together,
in neurons.

Shapes: P members, B examples, L layers, n nodes of a granularity in the widest layer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import pad

from bigcircuit.gates.members import Members
from bigcircuit.gates.parametrisation import LayerMasks
from bigcircuit.gates.schedules import allowed_size, temperature
from bigcircuit.gates.soft_top_k import soft_top_k
from bigcircuit.model.granularity import ATTENTION, GRANULARITIES, MLP, SITE_WIDTH, finest, fold_sites

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
    sizes, found = population.members[member].config.target.sizes(), dict[str, Tensor]()
    for asked, names in _groups(sizes, list(log_alpha)):
        chosen = {name: (values > 0).double() for name, values in found.items()}
        weight = torch.cat([_weight(population, name, chosen, asked == "total").flatten() for name in names])
        scores = torch.cat([log_alpha[name].flatten() for name in names])
        border = _border(scores[weight > 0], weight[weight > 0], _left(asked, sizes))
        found |= {name: log_alpha[name] - border for name in names}
    return {name: values.float() for name, values in found.items()}


def _border(scores: Tensor, weight: Tensor, size: int) -> Tensor:
    """Threshold of a size: half-way between the weakest of the strongest nodes that together weigh `size`, and the next node."""
    order = torch.argsort(scores, descending=True)
    count = int((torch.cumsum(weight[order], 0) < size).sum()) + 1
    strongest = torch.cat([scores[order], scores[order[-1:]] - 1])
    return strongest[min(count, len(order)) - 1 : min(count, len(order)) + 1].mean()


def _groups(sizes: Mapping[str, int], names: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Group the granularities by the target that each meets, coarse ones first and `total` last."""
    own = [(name, [name]) for name in GRANULARITIES if name in names and name in sizes]
    rest = [name for name in names if name not in sizes]
    return own + ([("total", rest)] if "total" in sizes and rest else [])


def _left(asked: str, sizes: Mapping[str, int]) -> int:
    """Size of a group: `total` without the neurons that have a target of their own."""
    own = sum(sizes.get(name, 0) for name in ("attention_neuron", "mlp_neuron")) if asked == "total" else 0
    return max(sizes[asked] - own, 1)


def _sizes_to_train(population: Members, examples: Sequence[int], asked: str, everything: int) -> Tensor:
    """Sizes of a group of `everything` nodes in training: of every example, [P, B, 1], where they are sampled; else one for the
    update, [P, 1, 1]. In float64 for the reason given in hard_concrete.py."""
    if population.members[0].config.gates.sampled_sizes:
        drawn = population.uniform(_SIZE_LAYER, examples, 1).double()
        return (everything * torch.exp(-math.log(_SMALLEST) * drawn)).float()
    allowed, least = (sizes.double() for sizes in _range(population, asked, everything))
    share = population.uniform(_SIZE_LAYER, [_WHOLE_UPDATE], 1).double()
    return (allowed * (least / allowed) ** share).float()


def _allowed_sizes(population: Members, asked: str, everything: int) -> Tensor:
    """Sizes that a group of `everything` nodes is allowed now, [P, 1, 1]."""
    return _range(population, asked, everything)[0]


def _range(population: Members, asked: str, everything: int) -> tuple[Tensor, Tensor]:
    """Sizes that a group is allowed now, and the least sizes that an update looks ahead to, [P, 1, 1] each."""
    now = [(m.config, _left(asked, m.config.target.sizes()), m.done) for m in population.members]
    allowed = [allowed_size(config.train, everything, size, done) for config, size, done in now]
    least = [
        min(size, everything) if config.gates.look_ahead else at
        for (config, size, _), at in zip(now, allowed, strict=True)
    ]
    return population.column(allowed), population.column(least)


def _solve(population: Members, sizes: Callable[[str, int], Tensor]) -> dict[str, Tensor]:
    """Solve for the soft values of all gates, by granularity [P, B or 1, L, n].

    sizes: target and number of nodes (or neurons) of a group -> sizes, [P, B or 1, 1].
    """
    stacked, values = population.stack(), dict[str, Tensor]()
    soft = population.column([temperature(member.config.gates, member.done) for member in population.members])
    for asked, names in _groups(population.members[0].config.target.sizes(), list(stacked)):
        everything = sum(width * _counts(population, name, asked == "total")[i] for name in names
                         for i, width in enumerate(population.widths(name)))  # fmt: skip
        weights = [_weight(population, name, values, asked == "total") for name in names]
        scores = [stacked[name].unsqueeze(1) for name in names]
        solved = soft_top_k(
            torch.cat([part.flatten(2) for part in scores], -1),
            sizes(asked, everything),
            soft,
            torch.cat([w.expand_as(part).flatten(2) for w, part in zip(weights, scores, strict=True)], -1),
        )
        parts = solved.split([stacked[name][0].numel() for name in names], -1)
        values |= {name: part.unflatten(-1, stacked[name].shape[1:]) for name, part in zip(names, parts, strict=True)}
    return values


def _weight(population: Members, name: str, above: Mapping[str, Tensor], in_neurons: bool) -> Tensor:
    """Weigh each node of a group, [..., L, n]: 0 for padding, times the openness of the gates above; for `total` in neurons."""
    widths = population.widths(name)
    rows = []
    for index, (width, count) in enumerate(zip(widths, _counts(population, name, in_neurons), strict=True)):
        row = torch.full((width,), float(count), device=population.device)
        for parent in GRANULARITIES[name].parents:
            if parent in above:
                there = population.widths(parent)[index]
                row = row * above[parent][..., index, :there].repeat_interleave(width // there, dim=-1)
        rows.append(pad(row, (0, max(widths) - width)))
    return torch.stack(rows, -2)


def _counts(population: Members, name: str, in_neurons: bool) -> list[int]:
    """Weight of a node of each layer by itself: 1, or the number of neurons for which its gate is the finest."""
    if not in_neurons:
        return [1] * len(population.shapes)
    sites = [site for site in (ATTENTION, MLP) if finest(list(population.members[0].log_alpha), site) == name]
    return [
        sum(SITE_WIDTH[site](shape) for site in sites) // GRANULARITIES[name].width(shape)
        for shape in population.shapes
    ]
