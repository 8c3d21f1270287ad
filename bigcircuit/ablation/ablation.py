"""An ablation as a value: what closed nodes output instead, with the tensors that its kind needs.

Shapes: P members, L layers, T positions, R rows of a batch, n values of a site in the widest layer, w in one layer.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.ablation.gaussian import standard_normal
from bigcircuit.ablation.kinds import KINDS, TENSORS, AblationKind
from bigcircuit.model.granularity import SITE_WIDTH, VALUE_WIDTH, LayerShape
from bigcircuit.seeding import mix

_NOISE_KEY = 0xAB1A
"""Keeps the noise of closed nodes apart from other uses of a seed."""


class Tokens(NamedTuple):
    """The tokens of a batch, as far as what closed nodes output depends on them."""

    positions: Tensor
    """int64 [R or 1, T], counted from the first token that is not padding."""
    examples: Tensor
    """int64 [R], id of the example of every row."""


@dataclass(frozen=True)
class Ablation:
    """A kind by its full name, and its tensors. Raises ValueError for an unknown name and for a kind without its tensors."""

    name: str
    constants: Mapping[str, Tensor] | None = None
    """By site, float32 [P or 1, L, T or 1, n], rows padded for layers of other widths. Where T > 1 the first T - 1 entries
    are for the positions 0, 1, ... and the last one is for every position beyond."""
    deviations: Mapping[str, Tensor] | None = None
    """Standard deviations, by site like `constants`."""
    seed: int = 0
    """Seed of the noise, for kinds that draw some."""

    def __post_init__(self) -> None:
        if self.name not in KINDS:
            raise ValueError(f"ablation {self.name} is not known; use any of {', '.join(KINDS)}")
        if missing := [part for part in self.kind.tensors if getattr(self, part) is None]:
            raise ValueError(f"ablation {self.name} needs {' and '.join(missing)}; measure them over a data set first")

    @property
    def kind(self) -> AblationKind:
        """Its entry in the table."""
        return KINDS[self.name]

    def tensors(self) -> dict[str, Mapping[str, Tensor]]:
        """The tensors that there are, by their names in TENSORS and by site."""
        return {part: found for part in TENSORS if (found := getattr(self, part)) is not None}

    def covers(self, site: str) -> bool:
        """Whether all tensors that there are hold the site, so that its nodes can be closed."""
        return all(site in found for found in self.tensors().values())

    def to(self, device: torch.device) -> "Ablation":
        """The same ablation with its tensors on another device."""
        return self._mapped(lambda values: values.to(device))

    def of(self, members: Sequence[int]) -> "Ablation":
        """The tensors of some members, in this order; those that members share stay shared."""
        return self._mapped(lambda values: values if len(values) == 1 else values[list(members)])

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "Ablation":
        constants, deviations = (
            None if found is None else {site: change(values) for site, values in found.items()}
            for found in (self.constants, self.deviations)
        )
        return Ablation(self.name, constants, deviations, self.seed)

    def reseeded(self, seed: int) -> "Ablation":
        """The same ablation with other noise, for kinds that draw some."""
        return self if self.kind.sample is None else replace(self, seed=seed)

    def at(self, site: str, layer: int, width: int, tokens: Tokens) -> Tensor | None:
        """What the closed nodes of one site output, [P or 1, R or 1, T or 1, w]; None for nothing."""
        parts = [_rows(found[site], layer, width, tokens.positions) for found in self.tensors().values()]
        if not parts:
            return None
        if self.kind.sample is None:
            return parts[0]
        seed = mix(_NOISE_KEY, self.seed, layer, list(SITE_WIDTH).index(site))
        constants, deviations = parts
        return self.kind.sample(constants, deviations, standard_normal(seed, tokens.examples, tokens.positions, width))


def _rows(values: Tensor, layer: int, width: int, positions: Tensor) -> Tensor:
    """Values of one layer at each position, [P or 1, R or 1, T or 1, w]."""
    rows = values[:, layer, :, :width]
    last = rows.shape[1] - 1
    return rows.unsqueeze(1) if last == 0 else rows[:, positions.clamp(max=last)]


INTERCHANGE = Ablation("interchange")
"""A closed node outputs its activation on the corrupted prompt."""
ZERO = Ablation("zero")


class Moments(NamedTuple):
    """Activations of the full model over a data set, by site; float32, zero in the padding of narrower layers."""

    mean: dict[str, Tensor]
    """[L, T, n]; the last entry is the mean over all positions, those before it are for positions 0, 1, ..."""
    deviation: dict[str, Tensor]
    """[L, n], standard deviation over all tokens."""

    def ablation(self, name: str) -> Ablation:
        """The ablation of a kind that is made of these moments, the same for all members."""
        wanted = KINDS[name].tensors
        constants = {site: mean.unsqueeze(0) for site, mean in self.mean.items()}
        deviations = {site: deviation[None, :, None] for site, deviation in self.deviation.items()}
        return Ablation(
            name, constants if "constants" in wanted else None, deviations if "deviations" in wanted else None
        )

    def start(self, site: str, shapes: Sequence[LayerShape]) -> tuple[Tensor, Tensor]:
        """Where learned constants start, and the unit in which they are learned, [L, n] each: mean and standard deviation.

        So one learning rate suits neurons of any size. A neuron that hardly varies can still carry a constant that helps: the
        unit is at least a tenth of the root mean square of the layer.
        """
        mean, deviation = self.mean[site][:, -1], self.deviation[site]
        widths = torch.tensor([max(VALUE_WIDTH[site](shape), 1) for shape in shapes], device=mean.device)
        power = (mean.square() + deviation.square()).sum(1, keepdim=True) / widths.unsqueeze(1)
        return mean, torch.maximum(deviation, 0.1 * power.sqrt())
