"""What closed nodes output instead, as a value: the name of an ablation and its constants, if it has any.

Shapes: P members, L layers, T positions, R rows of a batch, n width of a site in the widest layer, w in one layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.config.schema import ABLATIONS
from bigcircuit.model.granularity import SITE_WIDTH, LayerShape


@dataclass(frozen=True)
class Ablation:
    """`interchange` and `zero` have no constants; `mean`, `mean_per_position` and `optimal` do.

    Raises ValueError for a name that is not known, which would pass for zero ablation.
    """

    name: str
    constants: Mapping[str, Tensor] | None = None
    """By site, float32 [P or 1, L, T or 1, n], rows padded for layers of other widths. Where T > 1 the first T - 1 entries
    are for the positions 0, 1, ... and the last one is for every position beyond."""

    def __post_init__(self) -> None:
        if self.name not in ABLATIONS:
            raise ValueError(f"ablation {self.name} is not known; use any of {', '.join(ABLATIONS)}")

    def to(self, device: torch.device) -> "Ablation":
        """The same constants on another device."""
        moved = None if self.constants is None else {site: c.to(device) for site, c in self.constants.items()}
        return Ablation(self.name, moved)

    def of(self, members: list[int]) -> "Ablation":
        """The constants of some members, in this order; those that members share stay shared."""
        if self.constants is None:
            return self
        return Ablation(self.name, {s: c if len(c) == 1 else c[members] for s, c in self.constants.items()})

    def at(self, site: str, layer: int, width: int, positions: Tensor) -> Tensor | None:
        """What the closed nodes of one site output, [P or 1, R or 1, T or 1, w]; None for nothing.

        positions: [R or 1, T], counted from the first token that is not padding.
        """
        if self.constants is None:
            return None
        rows = self.constants[site][:, layer, :, :width]
        last = rows.shape[1] - 1
        return rows.unsqueeze(1) if last == 0 else rows[:, positions.clamp(max=last)]


INTERCHANGE = Ablation("interchange")
"""A closed node outputs what it outputs on the corrupted prompt."""
ZERO = Ablation("zero")


class Moments(NamedTuple):
    """Activations of the full model over a data set, by site; float32, zero in the padding of narrower layers."""

    mean: dict[str, Tensor]
    """[L, T, n]; the last entry is the mean over all positions, those before it are for positions 0, 1, ..."""
    deviation: dict[str, Tensor]
    """[L, n], standard deviation over all tokens."""

    def start(self, site: str, shapes: Sequence[LayerShape]) -> tuple[Tensor, Tensor]:
        """Where learned constants start, and the unit in which they are learned, [L, n] each: mean and standard deviation.

        So one learning rate suits neurons of any size. One that hardly varies can still carry a constant that helps: its
        unit is at least a tenth of the root mean square of its layer.
        """
        mean, deviation = self.mean[site][:, -1], self.deviation[site]
        widths = torch.tensor([SITE_WIDTH[site](shape) for shape in shapes], device=mean.device)
        power = (mean.square() + deviation.square()).sum(1, keepdim=True) / widths.unsqueeze(1)
        return mean, torch.maximum(deviation, 0.1 * power.sqrt())


def widest(shapes: Sequence[LayerShape], site: str) -> int:
    """Width of a site in the layer where it is widest."""
    return max(SITE_WIDTH[site](shape) for shape in shapes)
