"""Weigh nodes in parameters: what a circuit gains by a node, given all nodes that are stronger.

Nodes share parameters: heads of a group its keys and values, neurons of a head its queries, all nodes of a layer its norms. The
strongest of those that use a part weighs it, the others do not. So nodes taken from the strongest on weigh, at every size,
exactly what `count_parameters` counts.

Shapes: N nodes of a group of granularities, all layers of one after those of another, rows padded; E uses of parts that several
nodes share; L layers, n nodes of a granularity in the widest layer.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bigcircuit.model.granularity import GRANULARITIES, SITE_WIDTH, LayerShape, finest, fold, widest
from bigcircuit.model.parameter_count import SharedParameters


class ParameterWeights:
    """Parameters that the nodes of a group use, and those that other nodes of the same layers use."""

    def __init__(
        self,
        shared: Sequence[Sequence[SharedParameters]],
        shapes: Sequence[LayerShape],
        names: Sequence[str],
        gated: Sequence[str],
        device: torch.device,
    ) -> None:
        """shared: of each layer. names: granularities of the group. gated: all granularities with gates.

        What nodes outside of the group use as well is theirs.
        """
        self._shapes, self._device = tuple(shapes), device
        self.total = sum(one.size * one.parts for layer in shared for one in layer)
        """All parameters of the layers."""
        self._outside: list[tuple[int, SharedParameters, list[str]]] = []
        first = [0]
        for name in names:
            first.append(first[-1] + len(shapes) * widest(shapes, name))
        alone = torch.zeros(first[-1], dtype=torch.float64)
        users, used, sizes, parts = [], [], [], 0
        for index, (layer, shape) in enumerate(zip(shared, shapes, strict=True)):
            for one in layer:
                leaves = {site: finest(gated, site) for site in one.users}
                others = [site for site, leaf in leaves.items() if leaf not in names]
                if others:
                    self._outside.append((index, one, others))
                if others or not one.size:
                    continue
                pairs = []
                for site, numbers in one.users.items():
                    name = next(name for name in names if name == leaves[site])
                    width = GRANULARITIES[name].width(shape)
                    nodes = torch.arange(len(numbers)) // (len(numbers) // width)
                    pairs.append(
                        torch.stack([nodes + first[names.index(name)] + index * widest(shapes, name), numbers])
                    )
                node, part = torch.unique(torch.cat(pairs, 1), dim=1)
                several = torch.bincount(part, minlength=one.parts)[part] > 1
                size = torch.full((len(node),), one.size, dtype=torch.float64)
                alone.index_add_(0, node[~several], size[~several])
                users.append(node[several])
                used.append(part[several] + parts)
                sizes.append(size[several])
                parts += one.parts
        self._alone, self._parts = alone.to(device), parts
        # Of each use, [E]: the node, the part and the part's size.
        self._user, self._used, self._size = (torch.cat(rows).to(device) for rows in (users, used, sizes))

    @torch.no_grad()
    def weigh(self, strength: Tensor, openness: Tensor) -> Tensor:
        """Weigh each node in parameters, float64 [..., N].

        strength: by which nodes are chosen, any order of them will do. openness: of all gates above a node, 0 for padding; a
        part is weighed by the strongest of the nodes that can be open.
        """
        strength, openness = torch.broadcast_tensors(strength, openness)
        strength = strength.masked_fill(openness <= 0.5, -torch.inf)[..., self._user]
        used, last = self._used.expand_as(strength), len(self._used)
        best = strength.new_full((*strength.shape[:-1], self._parts), -torch.inf).scatter_reduce(
            -1, used, strength, "amax"
        )
        # Of equally strong users of a part the first one weighs it.
        place = torch.arange(last, device=strength.device).expand_as(strength)
        place = place.masked_fill(strength < best.gather(-1, used), last)
        first = place.new_full(best.shape, last).scatter_reduce(-1, used, place, "amin")
        size = self._size.expand_as(strength).masked_fill(place > first.gather(-1, used), 0)
        return (self._alone + size.new_zeros(openness.shape).index_add(-1, self._user, size)) * openness

    @torch.no_grad()
    def outside(self, values: Mapping[str, Tensor]) -> Tensor:
        """Count what nodes outside of the group keep, by how far these are open, float64 [..., 1].

        values: gates that are solved by granularity, [..., L, n]; nodes without gates are open.
        """
        found = torch.zeros(1, dtype=torch.float64, device=self._device)
        for index, one, sites in self._outside:
            shape = self._shapes[index]
            layer = {name: gates[..., index, : GRANULARITIES[name].width(shape)] for name, gates in values.items()}
            openness: Tensor | None = None
            for site in sites:
                mask = fold(layer, site, shape)
                if mask is None:
                    mask = torch.ones(SITE_WIDTH[site](shape), device=self._device)
                numbers = one.users[site].to(self._device).expand_as(mask)
                most = mask.new_zeros(*mask.shape[:-1], one.parts).scatter_reduce(-1, numbers, mask, "amax")
                openness = most if openness is None else torch.maximum(openness, most)
            if openness is not None:
                found = found + one.size * openness.double().sum(-1, keepdim=True)
        return found
