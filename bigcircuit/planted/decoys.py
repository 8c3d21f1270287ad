"""Nodes of a widened sub-layer, and the vectors that they write.

Shapes: N nodes of the sub-layer (whole key/value groups, or MLP neurons), D hidden size.
"""

import random
from collections.abc import Sequence
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.errors import UserError

NEEDED = ("original", "shared")
"""Kinds of nodes that are in the truth; the other kinds are decoys."""


class PlantedNode(NamedTuple):
    """One node of the widened sub-layer."""

    source: int
    """Index of the original node whose input weights it has."""
    kind: str
    scale: float
    """Factor on the vector that the original, or the opposed pair `twin`, writes."""
    twin: int = -1
    """Number of the pair that an opposed node belongs to."""


class Sampler(NamedTuple):
    """Random generators, and which kinds of nodes are drawn."""

    choose: random.Random
    draw: torch.Generator
    unread: bool
    """Whether `unread` decoys exist: all readers ignore the direction of ones."""
    shared: float
    """Share of the needed nodes that are split into two copies, 0 to 1."""


def fill(
    kept: Sequence[int], sources: Sequence[int], room: int, kinds: Sequence[str], sampler: Sampler
) -> list[PlantedNode]:
    """Fill a sub-layer with originals, whole or shared, and decoys of all kinds, in random order.

    kept: originals that are needed; sources: originals whose input weights decoys may have; room: nodes of the widened sub-layer.
    Raises UserError if there is no room.
    """
    if len(kept) > room:
        raise UserError(f"{len(kept)} nodes are needed but the widened layer has {room}; raise times")
    count = min(round(sampler.shared * len(kept)) or bool(sampler.shared and kept), room - len(kept))
    split = set(sampler.choose.sample(sorted(kept), count))
    nodes: list[PlantedNode] = []
    for original in kept:
        if original in split:
            part = sampler.choose.uniform(0.4, 0.6)
            nodes += [PlantedNode(original, "shared", part), PlantedNode(original, "shared", 1 - part)]
        else:
            nodes.append(PlantedNode(original, "original", 1.0))
    order = list(kinds)
    sampler.choose.shuffle(order)
    for kind in cycle(order):
        source, left = sampler.choose.choice(list(sources)), room - len(nodes)
        if not left:
            break
        if kind != "opposed":
            nodes.append(PlantedNode(source, kind, 1.0))
        elif left > 1:
            nodes += [PlantedNode(source, kind, 1.0, len(nodes)), PlantedNode(source, kind, -1.0, len(nodes))]
    sampler.choose.shuffle(nodes)
    return nodes


def writes(nodes: Sequence[PlantedNode], originals: Tensor, norms: Tensor, sampler: Sampler) -> Tensor:
    """Make the vectors that the nodes write, [N, ..., D].

    originals: vectors that the original nodes write, [n, ..., D]; norms: lengths to choose from for the vectors of decoys.
    """
    shape = originals.shape[1:]
    twins = {node.twin: _random(shape, norms, sampler) for node in nodes if node.kind == "opposed"}
    return torch.stack([_write(node, originals, twins, norms, sampler) for node in nodes])


def _write(node: PlantedNode, originals: Tensor, twins: dict[int, Tensor], norms: Tensor, sampler: Sampler) -> Tensor:
    shape = originals.shape[1:]
    if node.kind in NEEDED:
        return node.scale * originals[node.source]
    if node.kind == "opposed":
        return node.scale * twins[node.twin]
    if node.kind == "unread":
        return torch.ones(shape) / shape[-1] ** 0.5 * _sizes(shape, norms, sampler, signed=True)
    if node.kind == "inner":
        half = _random((*shape[:-2], shape[-2] // 2, shape[-1]), norms, sampler)
        return torch.cat([half, -half], dim=-2)
    assert node.kind == "silent"
    return torch.zeros(shape)


def _random(shape: Sequence[int], norms: Tensor, sampler: Sampler) -> Tensor:
    """Draw vectors of random directions with the lengths of originals."""
    direction = torch.randn(*shape, generator=sampler.draw)
    return direction / direction.norm(dim=-1, keepdim=True) * _sizes(shape, norms, sampler)


def _sizes(shape: Sequence[int], norms: Tensor, sampler: Sampler, signed: bool = False) -> Tensor:
    chosen = norms[torch.randint(len(norms), (*shape[:-1], 1), generator=sampler.draw)]
    return chosen * (1 - 2 * torch.randint(2, chosen.shape, generator=sampler.draw)) if signed else chosen
