"""The gates of P members over one frozen model.

A member's gates are parameters of its own, so an ordinary torch optimizer keeps its moments, step count and learning rate
apart from those of the others. A pass stacks them along the leading member dimension.

Shapes: P members, B examples, L layers, n nodes of a granularity in the widest layer, w its true width in one layer.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from bigcircuit.ablation.ablation import Ablation, Moments
from bigcircuit.ablation.learned import ConstantsStart
from bigcircuit.config.schema import Config
from bigcircuit.gates.members import Member, Members, Shapes
from bigcircuit.gates.parametrisation import PARAMETRISATIONS, Implementation, Parametrisation
from bigcircuit.model.granularity import (
    GRANULARITIES,
    LEAVES,
    counted_sites,
    expand,
    finest,
    spread,
)
from bigcircuit.model.parameter_count import SharedParameters


class Population(Members):
    """P members, all of one parametrisation."""

    @property
    def _parametrisation(self) -> Parametrisation:
        return PARAMETRISATIONS[self.members[0].config.gates.parametrisation]

    @property
    def _gates(self) -> Implementation:
        return self._parametrisation.implementation

    @classmethod
    def new(
        cls,
        configs: Sequence[Config],
        shapes: Shapes,
        device: torch.device | str = "cpu",
        shared: Sequence[Sequence[SharedParameters]] = (),
    ) -> "Population":
        """Make one new member for each config. shared: as for `Members`."""
        return cls([Member(config, shapes, device) for config in configs], shapes, device, shared)

    def part(self, members: Sequence[Member]) -> "Population":
        """Make a population of other members with the same shapes, device and start of learned constants."""
        found = Population(members, self.shapes, self.device, self.shared)
        found.centre, found.spread = self.centre, self.spread
        return found

    @torch.no_grad()
    def shift_neurons(self, ranks: dict[str, list[Tensor]]) -> None:
        """Warm-start gates: move the first log_alpha of every neuron by its rank in [-1, 1], by site a list of [w] a layer."""
        for member in self.members:
            for site, rows in ranks.items():
                if LEAVES[site] in member.log_alpha:
                    for index, row in enumerate(rows):
                        member.log_alpha[LEAVES[site]][index, : len(row)] += member.config.gates.warm_start_spread * row
            member.clamp_()

    def start_constants(self, moments: Moments) -> None:
        """Start the learned constants of all members at the means, see Moments.start."""
        for site in moments.mean:
            self.centre[site], self.spread[site] = moments.start(site, self.shapes)

    def learned(self) -> Ablation | None:
        """Make the ablation with the learned constants of all members, with a graph to them; None if none are learned.

        A site without gates keeps its means.
        """
        if not self.centre:
            return None
        start = ConstantsStart({site: centre.unsqueeze(0) for site, centre in self.centre.items()}, self.spread)
        return start.ablation([dict(member.offset.items()) for member in self.members])

    def draw(self, examples: Sequence[int]) -> Callable[[int], dict[str, Tensor]]:
        """Draw the masks of one pass: layer index -> effective masks of every member by site, [P, B or 1, site width].

        Values are fixed by (member seed, member step, layer, example), so a layer can be recomputed.
        """
        return self._gates.draw(self, examples, self._parametrisation.rounded)

    def expected_open(self) -> dict[str, Tensor]:
        """Compute the expected number of open nodes by granularity, and of site neurons as `total`, each float32 [P].

        A node is open when its own gate and all gates above it are, so chains of probabilities multiply. Where members ask for a
        share of the parameters, `parameters` is the expected one.
        """
        gates = self._gates.open_shares(self)
        sums: dict[str, list[Tensor]] = {}
        leaves: dict[str, dict[int, Tensor]] = {}
        for index, shape in enumerate(self.shapes):
            chain: dict[str, Tensor] = {}
            for name, own in self.layer(gates, index).items():
                parent = next((p for p in reversed(GRANULARITIES[name].parents) if p in chain), None)
                if parent is not None:
                    own = own * spread(chain[parent], own.shape[-1])
                chain[name] = own
                sums.setdefault(name, []).append(own.sum(-1))
            for site in counted_sites(chain):
                leaf = finest(chain, site)
                if leaf is not None:
                    sums.setdefault("total", []).append(expand(chain[leaf], site, shape).sum(-1))
                    leaves.setdefault(leaf, {})[index] = chain[leaf]
        found = {name: torch.stack(parts).sum(0).float() for name, parts in sums.items()}
        if any(member.config.target.parameters is not None for member in self.members):
            found["parameters"] = self._share_of_parameters(leaves, gates)
        return found

    def _share_of_parameters(self, leaves: Mapping[str, Mapping[int, Tensor]], gates: Mapping[str, Tensor]) -> Tensor:
        """Compute the expected share of the parameters that is kept, float32 [P].

        leaves: how far the finest nodes of each layer are open, with what is above them, [P, w]. gates: [P, L, n].
        """
        weights = self.parameter_weights(list(leaves))
        rows = [
            pad(own, (0, gates[name].shape[-1] - own.shape[-1])) for name, one in leaves.items() for own in one.values()
        ]
        open_ = torch.cat(rows, -1)
        weight = weights.weigh(open_.detach(), torch.ones_like(open_))
        kept = (weight * open_).sum(-1, keepdim=True) + weights.outside(gates)
        return (kept[:, 0] / weights.total).float()

    def decided(self, member: int) -> dict[str, Tensor]:
        """Copy log_alpha of a member by granularity, [L, n], shifted so that gates above 0 are open, as `discretise` takes it."""
        return self._gates.decided(self, member)
