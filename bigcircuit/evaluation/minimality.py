"""Minimality: close every kept node, or group of nodes, by itself, and measure what that does to the circuit.

Shapes: K nodes or groups, N examples, L layers, n nodes of a granularity in the widest layer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.circuit.masks import leaves
from bigcircuit.gates.discretise import Masks
from bigcircuit.metrics.registry import Scores, preference_of
from bigcircuit.metrics.score import ExampleScores, summarise_rows
from bigcircuit.model.granularity import GRANULARITIES, LEAVES, SITE_WIDTH, LayerShape, count_total, expand
from bigcircuit.results.evaluation import Dropped, Minimality


class Group(NamedTuple):
    """Nodes of one layer that are closed together."""

    layer: int
    nodes: list[int]


def groups(mask: Tensor, limit: int) -> tuple[list[Group], int]:
    """Divide the kept nodes of one granularity, mask [L, n], into about `limit` groups of neighbours; return groups and group size.

    A group lies within one layer, so there may be up to L - 1 more groups than `limit`.
    """
    size = max(1, -(-int(mask.sum()) // limit))
    found = []
    for layer, row in enumerate(mask):
        kept = row.nonzero().flatten().tolist()
        found += [Group(layer, kept[start : start + size]) for start in range(0, len(kept), size)]
    return found, size


def without(masks: Mapping[str, Tensor], name: str, closed: Sequence[Group], shapes: Sequence[LayerShape]) -> Masks:
    """Close some nodes of the granularity `name`, and so everything below them; return the leaf masks that are left."""
    left = {leaf: mask.clone() for leaf, mask in leaves(masks).items()}
    for layer, nodes in closed:
        stays_open = torch.ones(GRANULARITIES[name].width(shapes[layer]), dtype=torch.bool)
        stays_open[nodes] = False
        for site in GRANULARITIES[name].sites:
            if LEAVES[site] in left and SITE_WIDTH[site](shapes[layer]):
                open_neurons = expand(stays_open, site, shapes[layer])
                left[LEAVES[site]][layer, : len(open_neurons)] &= open_neurons
    return left


def worth_testing(masks: Mapping[str, Tensor], shapes: Sequence[LayerShape]) -> list[str]:
    """List the granularities with kept nodes; without key/value groups where each is one head, which the heads test already."""
    groups_are_heads = all(shape.kv_heads == shape.heads for shape in shapes)
    kept = [name for name in GRANULARITIES if name in masks and masks[name].any()]
    return [name for name in kept if not (name == "kv_group" and groups_are_heads)]


@dataclass(frozen=True)
class MinimalityTest:
    """A circuit whose kept nodes are closed, and how the circuits without them are scored."""

    masks: Masks
    shapes: Sequence[LayerShape]
    baseline: ExampleScores
    """Scores on the held-out pairs; the first row is the circuit itself."""
    score: Callable[[Sequence[Masks]], ExampleScores]
    """Scores circuits on the same pairs."""
    summarise: Callable[[ExampleScores], Scores]
    """Summarises the scores of one circuit."""
    limit: int
    """Groups of nodes tested per granularity, see `groups`."""
    tolerance: float
    """Nats of KL."""


def minimality(test: MinimalityTest, name: str) -> Minimality:
    """Close the kept nodes of the granularity `name` one after the other.

    A node is necessary if the mean change of KL is above the tolerance and its 95% interval above 0: a node that matters on a
    few pairs only has a wide interval. Unnecessary nodes may replace each other, so the circuit without all of them is scored as
    well.
    """
    tested, size = groups(test.masks[name], test.limit)
    circuits = [without(test.masks, name, [group], test.shapes) for group in tested]
    scores, before = test.score(circuits), test.baseline
    kl_changes = summarise_rows((scores["kl"] - before["kl"][:1]).double().numpy())
    name_of = preference_of(scores)
    difference_changes = summarise_rows((scores[name_of] - before[name_of][:1]).double().numpy())
    dropped = [
        Dropped(
            layer=group.layer,
            nodes=group.nodes,
            neurons=_neurons(test.masks) - _neurons(circuit),
            kl_change=kl_change,
            logit_difference_change=difference_change,
            necessary=kl_change.low > 0 and kl_change.mean > test.tolerance,
        )
        for group, circuit, kl_change, difference_change in zip(
            tested, circuits, kl_changes, difference_changes, strict=True
        )
    ]
    spare = [group for group, result in zip(tested, dropped, strict=True) if not result.necessary]
    together = None
    if spare and len(spare) < len(tested):
        together = test.summarise(test.score([without(test.masks, name, spare, test.shapes)]))
    return Minimality(
        kept=int(test.masks[name].sum()),
        group=size,
        tolerance=test.tolerance,
        dropped=sorted(dropped, key=lambda result: -result.kl_change.mean),
        unnecessary=sum(len(group.nodes) for group in spare),
        together=together,
    )


def _neurons(masks: Mapping[str, Tensor]) -> int:
    """Count the neurons that masks keep, but for those of experts."""
    return count_total({name: int(mask.sum()) for name, mask in masks.items()})
