"""Members of a population: their log_alpha and learned constants, and how those of several are stacked.

Shapes: P members, L layers, n nodes of a granularity in the widest layer, w its true width in one layer.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from bigcircuit.ablation.kinds import KINDS
from bigcircuit.config.schema import Config
from bigcircuit.gates.noise import Noise
from bigcircuit.gates.parameter_weights import ParameterWeights
from bigcircuit.gates.parametrisation import has_exact_sizes
from bigcircuit.model.granularity import (
    GRANULARITIES,
    LayerShape,
    learned_sites,
    top_k_granularities,
    widest,
    widest_values,
)
from bigcircuit.model.parameter_count import SharedParameters
from bigcircuit.seeding import mix

Shapes = Sequence[LayerShape]
_INIT_KEY = 0x1A7
"""Keeps the noise of the first log_alpha apart from the noise of the gates."""


def trained_granularities(config: Config) -> tuple[str, ...]:
    """Select the granularities that get gates."""
    names = config.gates.granularities
    return top_k_granularities(names, config.target.sizes()) if has_exact_sizes(config.gates.parametrisation) else names


class Member(nn.Module):
    """One mask set: `log_alpha[g]`, float32 [L, n]. Entries beyond a layer's true width are padding and never used.

    Under optimal ablation it has constants too: `offset[site]`, float32 [L, values], how far each has moved from where all members
    start, in units of the population's `spread`.
    """

    def __init__(self, config: Config, shapes: Shapes, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.config = config
        self.step = 0
        """Updates made so far."""
        generator = torch.Generator()
        self.log_alpha = nn.ParameterDict()
        for index, name in enumerate(GRANULARITIES):
            if name not in trained_granularities(config) or not any(map(GRANULARITIES[name].width, shapes)):
                continue
            size = len(shapes), widest(shapes, name)
            generator.manual_seed(mix(config.train.seed, _INIT_KEY, index))
            spread = config.gates.init_spread * (2 * torch.rand(size, generator=generator) - 1)
            self.log_alpha[name] = nn.Parameter((config.gates.init + spread).to(device))
        self.offset = nn.ParameterDict()
        names = list(self.log_alpha)
        learned = learned_sites(shapes, names) if KINDS[config.ablation.name].learned else ()
        for site in learned:
            self.offset[site] = nn.Parameter(torch.zeros(len(shapes), widest_values(shapes, site), device=device))

    @property
    def done(self) -> float:
        """Share of its updates that are made, 0 to 1; 1 where there are none to make."""
        steps = self.config.train.steps
        return self.step / steps if steps else 1.0

    @torch.no_grad()
    def clamp_(self) -> None:
        """Clamp log_alpha, so that every gate stays recoverable."""
        limit = self.config.gates.clamp
        if not has_exact_sizes(self.config.gates.parametrisation):
            for parameter in self.log_alpha.values():
                parameter.clamp_(-limit, limit)


class Members(nn.Module):
    """Base of a population: members that share a pass. A member may belong to several."""

    def __init__(
        self,
        members: Sequence[Member],
        shapes: Shapes,
        device: torch.device | str = "cpu",
        shared: Sequence[Sequence[SharedParameters]] = (),
    ) -> None:
        """shared: what nodes of each layer use; needed where members ask for a share of the parameters."""
        super().__init__()
        self.shared = shared
        self.shapes = tuple(shapes)
        # A list of modules, so that their parameters are the population's; torch's stubs do not know of what.
        self.members = cast(Sequence[Member], nn.ModuleList(members))
        self.device = torch.device(device)
        self._noise = Noise(device)
        self._weights: dict[tuple[str, ...], ParameterWeights] = {}
        self.centre: dict[str, Tensor] = {}
        """By site [L, n]: where the learned constants of all members start; empty without optimal ablation."""
        self.spread: dict[str, Tensor] = {}
        """The unit in which their offsets are counted."""

    def __len__(self) -> int:
        return len(self.members)

    def stack(self) -> dict[str, Tensor]:
        """Stack log_alpha of all members by granularity, [P, L, n]; gradients flow back to each member."""
        return {name: torch.stack([m.log_alpha[name] for m in self.members]) for name in self.members[0].log_alpha}

    def layer(self, stacked: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        """Select one layer of stacked gates and cut the padding off; by granularity, [P, w]."""
        shape = self.shapes[index]
        return {name: values[:, index, : GRANULARITIES[name].width(shape)] for name, values in stacked.items()}

    def uniform(self, layer: int, examples: Sequence[int], width: int) -> Tensor:
        """Draw the noise of all members at their step, float32 [P, B, width]."""
        seeds, steps = [m.config.train.seed for m in self.members], [m.step for m in self.members]
        return self._noise.uniform(seeds, steps, layer, examples, width)

    def widths(self, name: str) -> list[int]:
        """Count the nodes of a granularity in each layer."""
        return [GRANULARITIES[name].width(shape) for shape in self.shapes]

    def parameter_weights(self, names: Sequence[str]) -> ParameterWeights:
        """Weights in parameters of the nodes of these granularities."""
        key = tuple(names)
        if key not in self._weights:
            gated = list(self.members[0].log_alpha)
            self._weights[key] = ParameterWeights(self.shared, self.shapes, names, gated, self.device)
        return self._weights[key]

    def column(self, values: Sequence[float]) -> Tensor:
        """Lay out one number a member as float32 [P, 1, 1]."""
        return torch.tensor(values, dtype=torch.float32, device=self.device).view(-1, 1, 1)
