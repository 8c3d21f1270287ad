"""Circuits of one scoring: equal ones once, in an order in which neighbours share their first layers.

Shapes: P circuits, n width of a site.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.forward.pass_state import MaskSource, SiteMasks
from bigcircuit.forward.shared_layers import Branches
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import site_masks
from bigcircuit.model.granularity import LayerShape


class Chunk(NamedTuple):
    """Circuits that share a pass."""

    rows: list[int]
    """Places among the distinct circuits."""
    masks: MaskSource
    """[P, 1, n] by site."""
    branches: Branches | None
    """Layers that the circuits share; None where they share none."""


class DistinctCircuits:
    """Effective masks of circuits, with those of each layer once."""

    def __init__(self, circuits: Sequence[Mapping[str, Tensor]], shapes: Sequence[LayerShape], *, merge: bool) -> None:
        """circuits: granularity -> bool [L, n]. merge: whether equal masks are equal circuits and order is free; else none are
        merged."""
        self._masks: list[list[SiteMasks]] = [[] for _ in shapes]
        """By layer, bool [n] by site."""
        known: list[dict[tuple, int]] = [{} for _ in shapes]
        keys = []
        for masks in circuits:
            key = []
            for layer, shape in enumerate(shapes):
                folded = {site: mask.bool().cpu() for site, mask in site_masks(masks, layer, shape).items()}
                content = tuple((site, mask.numpy().tobytes()) for site, mask in folded.items())
                key.append(known[layer].setdefault(content, len(known[layer])))
                if key[-1] == len(self._masks[layer]):
                    self._masks[layer].append(folded)
            keys.append(tuple(key))
        self._merge = merge
        self._keys = sorted(set(keys)) if merge else keys
        place = {key: index for index, key in enumerate(self._keys)}
        self.places = [place[key] for key in keys] if merge else [*range(len(keys))]
        """Place of each circuit among the distinct ones."""

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def sites(self) -> list[str]:
        """Sites that some layer has masks of."""
        return list(dict.fromkeys(site for layer in self._masks for masks in layer for site in masks))

    def chunks(self, at_once: int | None, device: torch.device) -> list[Chunk]:
        """Divide the circuits into chunks of so many, by default all in one."""
        step = at_once or len(self) or 1
        return [self._chunk([*range(len(self))[first : first + step]], device) for first in range(0, len(self), step)]

    def _chunk(self, rows: list[int], device: torch.device) -> Chunk:
        keys = [self._keys[row] for row in rows]
        branches = Branches.of(keys) if self._merge else None
        return Chunk(rows, _source(self._masks, keys, device), branches if branches and branches.is_useful else None)


def _source(layers: Sequence[Sequence[SiteMasks]], keys: Sequence[tuple[int, ...]], device: torch.device) -> MaskSource:
    def source(index: int) -> SiteMasks:
        found = [layers[index][key[index]] for key in keys]
        return {site: torch.stack([one[site] for one in found]).unsqueeze(1).float().to(device) for site in found[0]}

    return source


def mask_source(circuits: Sequence[Mapping[str, Tensor]], streams: Streams) -> MaskSource:
    """Make the effective masks of P circuits (granularity -> bool [L, n]) for a pass: [P, 1, n] by site."""
    device = streams.frozen.device

    def source(index: int) -> SiteMasks:
        folded = [site_masks(masks, index, streams.frozen.shapes[index]) for masks in circuits]
        return {site: torch.stack([f[site] for f in folded]).unsqueeze(1).to(device) for site in folded[0]}

    return source
