"""Minimality: close every kept node, or group of nodes, by itself, and see what it does to the circuit.

Shapes: K nodes or groups, N examples.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bigcircuit.circuit.controls import leaves
from bigcircuit.gates.discretise import Masks
from bigcircuit.metrics.bootstrap import intervals
from bigcircuit.metrics.registry import Score, Scores
from bigcircuit.metrics.score import ExampleScores
from bigcircuit.model.granularity import GRANULARITIES, LEAVES, LayerShape, expand
from bigcircuit.results.evaluation import Dropped, Minimality

Shapes = Sequence[LayerShape]
Scorer = Callable[[Sequence[Masks]], ExampleScores]
"""Scores any number of circuits on the held-out examples."""


class Group(NamedTuple):
    """Kept nodes of one layer that are closed together."""

    layer: int
    nodes: list[int]


def groups(mask: Tensor, limit: int) -> tuple[list[Group], int]:
    """The kept nodes of one granularity, mask [L, n], in at most about `limit` groups of neighbours; and their size.

    A group lies within one layer, so there may be up to L - 1 more of them.
    """
    size = max(1, -(-int(mask.sum()) // limit))
    found = []
    for layer, row in enumerate(mask):
        kept = row.nonzero().flatten().tolist()
        found += [Group(layer, kept[start : start + size]) for start in range(0, len(kept), size)]
    return found, size


def without(masks: Mapping[str, Tensor], name: str, closed: Sequence[Group], shapes: Shapes) -> Masks:
    """Leaf masks of the circuit with some nodes of a granularity closed, and so everything below them."""
    left = {leaf: mask.clone() for leaf, mask in leaves(masks).items()}
    for layer, nodes in closed:
        stays = torch.ones(GRANULARITIES[name].width(shapes[layer]), dtype=torch.bool)
        stays[nodes] = False
        for site in GRANULARITIES[name].sites:
            if LEAVES[site] in left:
                open_neurons = expand(stays, site, shapes[layer])
                left[LEAVES[site]][layer, : len(open_neurons)] &= open_neurons
    return left


def worth_testing(masks: Mapping[str, Tensor], shapes: Shapes) -> list[str]:
    """Granularities that say something of their own: groups of one head each are heads."""
    alone = all(shape.kv_heads == shape.heads for shape in shapes)
    known = [name for name in GRANULARITIES if name in masks and masks[name].any()]
    return [name for name in known if not (name == "kv_group" and alone)]


def minimality(
    masks: Mapping[str, Tensor],
    name: str,
    shapes: Shapes,
    alone: ExampleScores,
    score: Scorer,
    summarise: Callable[[ExampleScores], Scores],
    limit: int,
    tolerance: float,
) -> Minimality:
    """Close the kept nodes of one granularity one after the other. alone: scores whose first row is
    the circuit itself.

    A node is necessary if the mean change of KL is above the tolerance and its 95% interval above 0: one that matters on a few
    pairs only has a wide interval. Those that are not may stand in for each other, so the circuit without all of them is
    scored as well.
    """
    tested, size = groups(masks[name], limit)
    circuits = [without(masks, name, [group], shapes) for group in tested]
    found = score(circuits)
    kl, difference = _scores(found.kl - alone.kl[:1]), _scores(found.logit_difference - alone.logit_difference[:1])
    dropped = []
    for group, circuit, one, other in zip(tested, circuits, kl, difference, strict=True):
        closed = _neurons(masks) - _neurons(circuit)
        dropped.append(Dropped(group.layer, group.nodes, closed, one, other, one.low > 0 and one.mean > tolerance))
    spare = [group for group, one in zip(tested, dropped, strict=True) if not one.necessary]
    together = None
    if spare and len(spare) < len(tested):
        together = summarise(score([without(masks, name, spare, shapes)]))
    dropped.sort(key=lambda one: -one.kl_change.mean)
    unnecessary = sum(len(group.nodes) for group in spare)
    return Minimality(int(masks[name].sum()), size, tolerance, dropped, unnecessary, together)


def _scores(change: Tensor) -> list[Score]:
    """Mean change of each row of [K, N] with its interval and tails."""
    values = change.double().numpy()
    found = intervals(values)
    tails = np.quantile(values, (0.0, 0.05, 0.95, 1.0), axis=1).T
    return [
        Score(*map(float, (*interval, *tail))) for interval, tail in zip(zip(*found, strict=True), tails, strict=True)
    ]


def _neurons(masks: Mapping[str, Tensor]) -> int:
    return int(masks["attention_neuron"].sum() + masks["mlp_neuron"].sum())
