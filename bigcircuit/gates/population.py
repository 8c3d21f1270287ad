"""The gates of P members over one frozen model.

A member's gates are parameters of its own, so an ordinary torch optimizer keeps its moments, step count and learning rate
apart from those of the others. A pass stacks them along the leading member dimension.

Shapes: P members, B examples, L layers, n nodes of a granularity in the widest layer, w its true width in one layer.
"""

from collections.abc import Sequence

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
    expand,
    finest,
    fold,
    gated,
)
from bigcircuit.gates.hard_concrete import binary_sample, probability_open, sample
from bigcircuit.gates.noise import Noise, mix

Shapes = Sequence[LayerShape]
_INIT_KEY = 0x1A7
"""Keeps the noise of the first log_alpha apart from the noise of the gates."""


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
            if name not in config.gates.granularities:
                continue
            size = len(shapes), max(granularity.width(shape) for shape in shapes)
            generator.manual_seed(mix(config.train.seed, _INIT_KEY, index))
            spread = config.gates.init_spread * (2 * torch.rand(size, generator=generator) - 1)
            self.log_alpha[name] = nn.Parameter((config.gates.init + spread).to(device))
        self.offset = nn.ParameterDict()
        for site in gated(config.gates.granularities) if config.ablation.kind == "optimal" else ():
            self.offset[site] = nn.Parameter(torch.zeros(len(shapes), widest(shapes, site), device=device))

    @torch.no_grad()
    def clamp_(self) -> None:
        """Keep every gate recoverable."""
        limit = self.config.gates.clamp
        for parameter in self.log_alpha.values():
            parameter.clamp_(-limit, limit)


class Population(nn.Module):
    """P members and the noise they draw."""

    def __init__(self, configs: Sequence[Config], shapes: Shapes, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self.shapes = tuple(shapes)
        self.members = nn.ModuleList(Member(config, shapes, device) for config in configs)
        self._noise = Noise(device)
        self._sample = sample if configs[0].gates.sampling == "hard_concrete" else binary_sample
        self.centre: dict[str, Tensor] = {}
        """By site [L, n]: where the learned constants of all members start; empty without optimal ablation."""
        self.spread: dict[str, Tensor] = {}
        """The unit in which their offsets are counted."""

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
        for site in self.members[0].offset:
            self.centre[site], self.spread[site] = moments.start(site, self.shapes)

    def learned(self) -> Ablation | None:
        """The ablation with the constants of all members as they stand, with a graph to them; None if none are learned."""
        if not self.centre:
            return None
        offsets = {site: torch.stack([m.offset[site] for m in self.members]) for site in self.centre}
        values = {site: self.centre[site] + self.spread[site] * offset for site, offset in offsets.items()}
        return Ablation("optimal", {site: constants.unsqueeze(2) for site, constants in values.items()})

    def stack(self) -> dict[str, Tensor]:
        """log_alpha of all members by granularity, [P, L, n]; gradients flow back to each member."""
        return {name: torch.stack([m.log_alpha[name] for m in self.members]) for name in self.members[0].log_alpha}

    def layer(self, stacked: dict[str, Tensor], index: int) -> dict[str, Tensor]:
        """One layer of stacked gates with the padding cut off, by granularity, [P, w]."""
        shape = self.shapes[index]
        return {name: values[:, index, : GRANULARITIES[name].width(shape)] for name, values in stacked.items()}

    def sample_masks(self, stacked: dict[str, Tensor], index: int, examples: Sequence[int]) -> dict[str, Tensor]:
        """Effective masks of one layer with fresh noise for every member and example, by site, [P, B, site width].

        The same (member seed, member step, layer, example) gives the same masks, so a layer can be recomputed.
        """
        gates = self.layer(stacked, index)
        widths = [values.shape[-1] for values in gates.values()]
        seeds = [member.config.train.seed for member in self.members]
        uniform = self._noise.uniform(seeds, [m.step for m in self.members], index, examples, sum(widths))
        drawn = {
            name: self._sample(values.unsqueeze(1), noise)
            for (name, values), noise in zip(gates.items(), uniform.split(widths, dim=-1), strict=True)
        }
        return fold_sites(drawn, self.shapes[index])

    def expected_open(self, stacked: dict[str, Tensor]) -> dict[str, Tensor]:
        """Expected number of open nodes by granularity, and of open site neurons as `total`, each float32 [P].

        A node is open when its own gate and all gates above it are, so chains of probabilities multiply.
        """
        sums: dict[str, list[Tensor]] = {}
        for index, shape in enumerate(self.shapes):
            chances = {name: probability_open(values) for name, values in self.layer(stacked, index).items()}
            chain: dict[str, Tensor] = {}
            for name, own in chances.items():
                parent = next((p for p in reversed(GRANULARITIES[name].parents) if p in chain), None)
                if parent is not None:
                    own = own * chain[parent].repeat_interleave(own.shape[-1] // chain[parent].shape[-1], dim=-1)
                chain[name] = own
                sums.setdefault(name, []).append(own.sum(-1))
            for site in (ATTENTION, MLP):
                leaf = finest(chain, site)
                if leaf is not None:
                    sums.setdefault("total", []).append(expand(chain[leaf], site, shape).sum(-1))
        return {name: torch.stack(parts).sum(0) for name, parts in sums.items()}


def fold_sites(values: dict[str, Tensor], shape: LayerShape) -> dict[str, Tensor]:
    """Effective masks of one layer by site, leaving out sites that no gate acts on."""
    folded = {site: fold(values, site, shape) for site in LEAVES}
    return {site: mask for site, mask in folded.items() if mask is not None}


def node_counts(shapes: Shapes, granularities: Sequence[str]) -> dict[str, int]:
    """How many nodes the model has, by granularity and as `total` site neurons."""
    counts = {name: sum(g.width(s) for s in shapes) for name, g in GRANULARITIES.items() if name in granularities}
    return counts | {"total": sum(s.heads * s.head_dim + s.intermediate for s in shapes)}
