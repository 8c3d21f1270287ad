"""The gates of P members over one frozen model.

A member's gates are parameters of its own, so an ordinary torch optimizer keeps its moments, step count and learning rate
apart from those of the others. A pass stacks them along the leading member dimension.

Shapes: P members, B examples, L layers, n nodes of a granularity in the widest layer, w its true width in one layer.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bigcircuit.ablated import Ablation, Moments, widest
from bigcircuit.config import Config
from bigcircuit.gates.granularity import (
    ATTENTION,
    GRANULARITIES,
    LEAVES,
    MLP,
    LayerShape,
    acting,
    expand,
    finest,
    gated,
)
from bigcircuit.gates.noise import Noise, mix
from bigcircuit.gates.parametrisation import PARAMETRISATIONS

Shapes = Sequence[LayerShape]
_INIT_KEY = 0x1A7
"""Keeps the noise of the first log_alpha apart from the noise of the gates."""


def trained_granularities(config: Config) -> tuple[str, ...]:
    """The granularities that get gates."""
    names = config.gates.granularities
    return acting(names, config.target.sizes()) if config.gates.parametrisation.endswith("top_k") else names


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
        if not self.config.gates.parametrisation.endswith("top_k"):
            for parameter in self.log_alpha.values():
                parameter.clamp_(-limit, limit)


class Population(nn.Module):
    """P members and the noise they draw."""

    def __init__(self, members: Sequence[Member], shapes: Shapes, device: torch.device | str = "cpu") -> None:
        """Members may belong to several populations: one is no more than a list of those that share a pass."""
        super().__init__()
        self.shapes = tuple(shapes)
        self.members = nn.ModuleList(members)
        self.device = torch.device(device)
        self._noise = Noise(device)
        self._parametrisation = PARAMETRISATIONS[members[0].config.gates.parametrisation]
        self.centre: dict[str, Tensor] = {}
        """By site [L, n]: where the learned constants of all members start; empty without optimal ablation."""
        self.spread: dict[str, Tensor] = {}
        """The unit in which their offsets are counted."""

    @classmethod
    def new(cls, configs: Sequence[Config], shapes: Shapes, device: torch.device | str = "cpu") -> "Population":
        """One new member a config."""
        return cls([Member(config, shapes, device) for config in configs], shapes, device)

    def part(self, members: Sequence[Member]) -> "Population":
        """A population of other members that shares what does not belong to any of them."""
        found = Population(members, self.shapes, self.device)
        found.centre, found.spread = self.centre, self.spread
        return found

    def __len__(self) -> int:
        return len(self.members)

    @torch.no_grad()
    def shift_neurons(self, ranks: dict[str, list[Tensor]]) -> None:
        """Warm start: move the first log_alpha of every neuron by its rank in [-1, 1], by site a list of [w] per layer."""
        for member in self.members:
            for site, rows in ranks.items():
                if LEAVES[site] in member.log_alpha:
                    for index, row in enumerate(rows):
                        member.log_alpha[LEAVES[site]][index, : len(row)] += member.config.gates.warm_start_spread * row
            member.clamp_()

    def start_constants(self, moments: Moments) -> None:
        """Optimal ablation: the constants of all members start at the means, see Moments.start."""
        for site in moments.mean:
            self.centre[site], self.spread[site] = moments.start(site, self.shapes)

    def learned(self) -> Ablation | None:
        """The ablation with the constants of all members as they stand, with a graph to them; None if none are learned.

        A site without gates keeps its means.
        """
        if not self.centre:
            return None
        values = {site: centre.expand(len(self), -1, -1) for site, centre in self.centre.items()}
        for site in self.members[0].offset:
            offsets = torch.stack([member.offset[site] for member in self.members])
            values[site] = self.centre[site] + self.spread[site] * offsets
        return Ablation("optimal", {site: constants.unsqueeze(2) for site, constants in values.items()})

    def stack(self) -> dict[str, Tensor]:
        """log_alpha of all members by granularity, [P, L, n]; gradients flow back to each member."""
        return {name: torch.stack([m.log_alpha[name] for m in self.members]) for name in self.members[0].log_alpha}

    def layer(self, stacked: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        """One layer of stacked gates with the padding cut off, by granularity, [P, w]."""
        shape = self.shapes[index]
        return {name: values[:, index, : GRANULARITIES[name].width(shape)] for name, values in stacked.items()}

    def draw(self, examples: Sequence[int]) -> Callable[[int], dict[str, Tensor]]:
        """Masks for one pass: layer index -> effective masks of every member by site, [P, B or 1, site width].

        Values are fixed by (member seed, member step, layer, example), so a layer can be recomputed.
        """
        return self._parametrisation.draw(self, examples)

    def expected_open(self) -> dict[str, Tensor]:
        """Expected number of open nodes by granularity, and of open site neurons as `total`, each float32 [P].

        A node is open when its own gate and all gates above it are, so chains of probabilities multiply.
        """
        gates = self._parametrisation.open(self)
        sums: dict[str, list[Tensor]] = {}
        for index, shape in enumerate(self.shapes):
            chain: dict[str, Tensor] = {}
            for name, own in self.layer(gates, index).items():
                parent = next((p for p in reversed(GRANULARITIES[name].parents) if p in chain), None)
                if parent is not None:
                    own = own * chain[parent].repeat_interleave(own.shape[-1] // chain[parent].shape[-1], dim=-1)
                chain[name] = own
                sums.setdefault(name, []).append(own.sum(-1))
            for site in (ATTENTION, MLP):
                leaf = finest(chain, site)
                if leaf is not None:
                    sums.setdefault("total", []).append(expand(chain[leaf], site, shape).sum(-1))
        return {name: torch.stack(parts).sum(0).float() for name, parts in sums.items()}

    def decided(self, member: int) -> dict[str, Tensor]:
        """log_alpha of a member by granularity, [L, n], as `discretise` takes it: open above 0. A copy."""
        return self._parametrisation.decided(self, member)

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
