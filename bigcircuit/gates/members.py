"""Members of a population: their log_alpha and learned constants, and how those of several are stacked.

Shapes: P members, L layers, n nodes of a granularity in the widest layer, w its true width in one layer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bigcircuit.ablation.ablation import widest
from bigcircuit.config.schema import Config
from bigcircuit.gates.noise import Noise
from bigcircuit.gates.parametrisation import has_exact_sizes
from bigcircuit.model.granularity import GRANULARITIES, LayerShape, acting, gated
from bigcircuit.seeding import mix

Shapes = Sequence[LayerShape]
_INIT_KEY = 0x1A7
"""Keeps the noise of the first log_alpha apart from the noise of the gates."""


def trained_granularities(config: Config) -> tuple[str, ...]:
    """The granularities that get gates."""
    names = config.gates.granularities
    return acting(names, config.target.sizes()) if has_exact_sizes(config.gates.parametrisation) else names


class Member(nn.Module):
    """One mask set: `log_alpha[g]`, float32 [L, n]. Entries beyond a layer's true width are padding and never used.

    Under optimal ablation it has constants too: `offset[site]`, float32 [L, n], how far each has moved from where all members
    start, in units of the population's `spread`.
    """

    def __init__(self, config: Config, shapes: Shapes, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.config = config
        self.step = 0
        """Updates made so far."""
        generator = torch.Generator()
        self.log_alpha = nn.ParameterDict()
        for index, (name, granularity) in enumerate(GRANULARITIES.items()):
            if name not in trained_granularities(config):
                continue
            size = len(shapes), max(granularity.width(shape) for shape in shapes)
            generator.manual_seed(mix(config.train.seed, _INIT_KEY, index))
            spread = config.gates.init_spread * (2 * torch.rand(size, generator=generator) - 1)
            self.log_alpha[name] = nn.Parameter((config.gates.init + spread).to(device))
        self.offset = nn.ParameterDict()
        for site in gated(trained_granularities(config)) if config.ablation.kind == "optimal" else ():
            self.offset[site] = nn.Parameter(torch.zeros(len(shapes), widest(shapes, site), device=device))

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep every gate recoverable."""
        limit = self.config.gates.clamp
        if not has_exact_sizes(self.config.gates.parametrisation):
            for parameter in self.log_alpha.values():
                parameter.clamp_(-limit, limit)


class Members(nn.Module):
    """Members that share a pass: one member may belong to several of these."""

    def __init__(self, members: Sequence[Member], shapes: Shapes, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.shapes = tuple(shapes)
        self.members = nn.ModuleList(members)
        self.device = torch.device(device)
        self._noise = Noise(device)

    def __len__(self) -> int:
        return len(self.members)

    def stack(self) -> dict[str, Tensor]:
        """log_alpha of all members by granularity, [P, L, n]; gradients flow back to each member."""
        return {name: torch.stack([m.log_alpha[name] for m in self.members]) for name in self.members[0].log_alpha}

    def layer(self, stacked: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        """One layer of stacked gates with the padding cut off, by granularity, [P, w]."""
        shape = self.shapes[index]
        return {name: values[:, index, : GRANULARITIES[name].width(shape)] for name, values in stacked.items()}

    def uniform(self, layer: int, examples: Sequence[int], width: int) -> Tensor:
        """Noise of all members at their step, float32 [P, B, width]."""
        seeds, steps = [m.config.train.seed for m in self.members], [m.step for m in self.members]
        return self._noise.uniform(seeds, steps, layer, examples, width)

    def widths(self, name: str) -> list[int]:
        """Nodes of a granularity in each layer."""
        return [GRANULARITIES[name].width(shape) for shape in self.shapes]

    def column(self, values: Sequence[float]) -> Tensor:
        """One number a member, float32 [P, 1, 1]."""
        return torch.tensor(values, dtype=torch.float32, device=self.device).view(-1, 1, 1)


def node_counts(shapes: Shapes, granularities: Sequence[str]) -> dict[str, int]:
    """How many nodes the model has, by granularity and as `total` site neurons."""
    counts = {name: sum(g.width(s) for s in shapes) for name, g in GRANULARITIES.items() if name in granularities}
    return counts | {"total": sum(s.heads * s.head_dim + s.intermediate for s in shapes)}
