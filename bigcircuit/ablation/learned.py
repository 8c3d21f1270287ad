"""Learned constants of optimal ablation: start + unit x offset.

Shapes: P circuits, L layers, n width of a site in the widest layer.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.ablation.ablation import Ablation, Moments
from bigcircuit.ablation.kinds import LEARNED
from bigcircuit.model.granularity import LayerShape


class ConstantsStart(NamedTuple):
    """Where learning starts, by site."""

    constants: Mapping[str, Tensor]
    """[P or 1, L, n]"""
    unit: Mapping[str, Tensor]
    """[L, n], in which steps are counted: see Moments.start."""

    @classmethod
    def at_means(cls, found: Moments, shapes: Sequence[LayerShape]) -> "ConstantsStart":
        """For circuits without constants of their own."""
        starts = {site: found.start(site, shapes) for site in found.mean}
        return cls({s: mean.unsqueeze(0) for s, (mean, _) in starts.items()}, {s: u for s, (_, u) in starts.items()})

    def ablation(self, offsets: Sequence[Mapping[str, Tensor]]) -> Ablation:
        """The constants that lie `offsets` away, for each circuit by site [L, n]; sites without any stay where they are."""
        values = {site: rows.expand(len(offsets), -1, -1) for site, rows in self.constants.items()}
        for site in offsets[0]:
            values[site] = values[site] + self.unit[site] * torch.stack([own[site] for own in offsets])
        return Ablation(LEARNED, {site: rows.unsqueeze(2) for site, rows in values.items()})
