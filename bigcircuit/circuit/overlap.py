"""Circuits as sets of nodes: overlap, overlap expected by chance, and circuits made of other circuits. No model is needed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import and_, or_

import numpy as np
import torch
from torch import Tensor

from bigcircuit.circuit.masks import complete_masks, leaves
from bigcircuit.gates.discretise import Masks
from bigcircuit.model.granularity import GRANULARITIES, LayerShape


@dataclass(frozen=True)
class Overlap:
    """Overlap of several circuits at one granularity: sizes, shared nodes, Jaccard index."""

    sizes: list[int]
    """Nodes kept by each circuit."""
    intersection: int
    """Nodes kept by all circuits."""
    union: int
    """Nodes kept by any circuit."""
    jaccard: float
    """intersection / union; 1 where all are empty."""
    chance: float
    """Jaccard index expected if every circuit kept as many nodes, drawn at random from all."""


@dataclass(frozen=True)
class Stability:
    """Jaccard index over all pairs of circuits, at one granularity."""

    mean: float
    min: float
    max: float
    chance: float
    """Mean over pairs of the Jaccard expected by chance."""
    matrix: list[list[float]]


def union(circuits: Sequence[Mapping[str, Tensor]], shapes: Sequence[LayerShape]) -> Masks:
    """Make the circuit of the neurons that any circuit keeps, and the nodes above them."""
    return complete_masks({name: reduce(or_, masks) for name, masks in _by_leaf(circuits).items()}, shapes)


def intersection(circuits: Sequence[Mapping[str, Tensor]], shapes: Sequence[LayerShape]) -> Masks:
    """Make the circuit of the neurons that all circuits keep; a head that all keep without a common neuron is closed."""
    return complete_masks({name: reduce(and_, masks) for name, masks in _by_leaf(circuits).items()}, shapes)


def difference(circuits: Sequence[Mapping[str, Tensor]], shapes: Sequence[LayerShape]) -> Masks:
    """Make the circuit of the neurons that the first circuit keeps and no other circuit keeps."""
    return complete_masks(
        {name: first & ~reduce(or_, others) for name, (first, *others) in _by_leaf(circuits).items()}, shapes
    )


OPERATIONS = {"union": union, "intersection": intersection, "difference": difference}
"""Name, as in `--save` and the metadata of a circuit file -> function of circuits and shapes."""


def _by_leaf(circuits: Sequence[Mapping[str, Tensor]]) -> dict[str, list[Tensor]]:
    """Collect the leaf masks of all circuits. A circuit without `mlp_output` masks keeps all outputs of the MLPs it keeps."""
    found: dict[str, list[Tensor]] = {}
    for name in dict.fromkeys(name for masks in circuits for name in leaves(masks)):
        found[name] = [
            masks[name] if name in masks else masks["mlp"].expand_as(next(m[name] for m in circuits if name in m))
            for masks in circuits
        ]
    return found


def jaccard(first: Tensor, second: Tensor) -> float:
    """Divide the nodes of both by the nodes of either; 1 where neither has nodes."""
    either = int((first | second).sum())
    return int((first & second).sum()) / either if either else 1.0


def chance_of_two(nodes: int, first: int, second: int) -> float:
    """Compute the expected Jaccard index of two random sets of these sizes out of `nodes`: exact, hypergeometric distribution."""
    if not first and not second:
        return 1.0
    shared = torch.arange(max(0, first + second - nodes), min(first, second) + 1, dtype=torch.float64)
    total = torch.tensor(float(nodes), dtype=torch.float64)
    probability = (
        _log_choose(torch.full_like(total, first), shared)
        + _log_choose(total - first, second - shared)
        - _log_choose(total, torch.full_like(total, second))
    ).exp()
    return float((probability * shared / (first + second - shared)).sum())


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    """Logarithm of the binomial coefficient, float64."""
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def chance(nodes: int, sizes: Sequence[int]) -> float:
    """Compute the expected Jaccard index of random sets: exact for two, else expected intersection over expected union."""
    if len(sizes) == 2:
        return chance_of_two(nodes, *sizes)
    shares = np.asarray(sizes) / nodes
    either = 1 - np.prod(1 - shares)
    return float(np.prod(shares) / either) if either else 1.0


def overlap(masks: Sequence[Tensor], nodes: int) -> Overlap:
    """Measure what circuits share at one granularity.

    masks: bool [L, n] of each circuit; nodes: how many nodes the model has.
    """
    both, either = int(reduce(and_, masks).sum()), int(reduce(or_, masks).sum())
    sizes = [int(mask.sum()) for mask in masks]
    return Overlap(sizes, both, either, both / either if either else 1.0, chance(nodes, sizes))


def stability(masks: Sequence[Tensor], nodes: int) -> Stability:
    """Measure the Jaccard index of every pair of circuits at one granularity. masks, nodes: as for `overlap`."""
    sizes = [int(mask.sum()) for mask in masks]
    matrix = [[jaccard(first, second) for second in masks] for first in masks]
    pairs = [(i, j) for i in range(len(masks)) for j in range(i)]
    found = [matrix[i][j] for i, j in pairs]
    expected = [chance_of_two(nodes, sizes[i], sizes[j]) for i, j in pairs]
    return Stability(float(np.mean(found)), min(found), max(found), float(np.mean(expected)), matrix)


def overlap_sentence(circuits: int, heads: Stability, neurons: Stability) -> str:
    """State how similar the circuits are, by pairs. circuits: how many there are."""
    if circuits == 2:
        return (
            f"Jaccard of the two circuits: {heads.mean:.2f} in heads (by chance {heads.chance:.2f}), {neurons.mean:.2f} in neurons "
            f"(by chance {neurons.chance:.2f})."
        )
    return (
        f"Jaccard of two of the {circuits} circuits, on average: {heads.mean:.2f} in heads (by chance {heads.chance:.2f}, lowest "
        f"{heads.min:.2f}), {neurons.mean:.2f} in neurons (by chance {neurons.chance:.2f}, lowest {neurons.min:.2f})."
    )


def frequency(masks: Sequence[Tensor], name: str, shapes: Sequence[LayerShape]) -> list[list[int]]:
    """Count, by layer and node of the granularity `name`, how many circuits keep the node."""
    counts = torch.stack([mask.long() for mask in masks]).sum(0)
    return [counts[index, : GRANULARITIES[name].width(shape)].tolist() for index, shape in enumerate(shapes)]
