"""Which nodes a widened sub-layer has, and what each of them writes.

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


class Slot(NamedTuple):
    """One node of the widened sub-layer."""

    source: int
    """The original that it reads as."""
    kind: str
    scale: float
    """What it writes, as a share of what its original, or the decoy called `twin`, writes."""
    twin: int = -1
    """Opposed nodes of the same number belong together."""


class Dice(NamedTuple):
    """Where chance comes from, and how much of what there is to be."""

    choose: random.Random
    draw: torch.Generator
    unread: bool
    """Whether all readers ignore the direction of ones."""
    shared: float
    """Share of the needed nodes that are split over two copies."""


def fill(kept: Sequence[int], sources: Sequence[int], room: int, kinds: Sequence[str], dice: Dice) -> list[Slot]:
    """Originals, whole or shared, and as many decoys of all kinds as there is room for, in random order.

    kept: originals that are needed; sources: originals that decoys may read as. Raises UserError if there is no room.
    """
    if len(kept) > room:
        raise UserError(f"{len(kept)} nodes are needed but the widened layer has {room}; raise times")
    count = min(round(dice.shared * len(kept)) or bool(dice.shared and kept), room - len(kept))
    split = set(dice.choose.sample(sorted(kept), count))
    slots = []
    for node in kept:
        part = dice.choose.uniform(0.4, 0.6) if node in split else 1.0
        slots += (
            [Slot(node, "shared", part), Slot(node, "shared", 1 - part)]
            if node in split
            else [Slot(node, "original", 1.0)]
        )
    order = list(kinds)
    dice.choose.shuffle(order)
    for kind in cycle(order):
        source, left = dice.choose.choice(list(sources)), room - len(slots)
        if not left:
            break
        if kind != "opposed":
            slots.append(Slot(source, kind, 1.0))
        elif left > 1:
            slots += [Slot(source, kind, 1.0, len(slots)), Slot(source, kind, -1.0, len(slots))]
    dice.choose.shuffle(slots)
    return slots


def writes(slots: Sequence[Slot], originals: Tensor, norms: Tensor, dice: Dice) -> Tensor:
    """What every slot writes, [N, ..., D].

    originals: what the original nodes write, [n, ..., D]; norms: sizes to choose from for the vectors of decoys.
    """
    shape = originals.shape[1:]
    twins = {slot.twin: _random(shape, norms, dice) for slot in slots if slot.kind == "opposed"}
    return torch.stack([_write(slot, originals, twins, norms, dice) for slot in slots])


def _write(slot: Slot, originals: Tensor, twins: dict[int, Tensor], norms: Tensor, dice: Dice) -> Tensor:
    shape = originals.shape[1:]
    if slot.kind in NEEDED:
        return slot.scale * originals[slot.source]
    if slot.kind == "opposed":
        return slot.scale * twins[slot.twin]
    if slot.kind == "unread":
        return torch.ones(shape) / shape[-1] ** 0.5 * _sizes(shape, norms, dice, signed=True)
    if slot.kind == "inner":
        half = _random((*shape[:-2], shape[-2] // 2, shape[-1]), norms, dice)
        return torch.cat([half, -half], dim=-2)
    assert slot.kind == "silent"
    return torch.zeros(shape)


def _random(shape: Sequence[int], norms: Tensor, dice: Dice) -> Tensor:
    """Vectors of random directions and of sizes that originals have."""
    direction = torch.randn(*shape, generator=dice.draw)
    return direction / direction.norm(dim=-1, keepdim=True) * _sizes(shape, norms, dice)


def _sizes(shape: Sequence[int], norms: Tensor, dice: Dice, signed: bool = False) -> Tensor:
    chosen = norms[torch.randint(len(norms), (*shape[:-1], 1), generator=dice.draw)]
    return chosen * (1 - 2 * torch.randint(2, chosen.shape, generator=dice.draw)) if signed else chosen
