"""The one definition of a discretised mask: for counting, validation, evaluation, the size that was asked, and the file.

A node is open when its own gate and every gate above it has log_alpha > 0, and something below it is open. Where sizes are
asked for, the strongest nodes are taken instead of those above 0: the strength of a neuron is the weakest log_alpha of its
chain, that of a coarser node the strength of its strongest neuron.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bigcircuit.gates.granularity import (
    ATTENTION,
    GRANULARITIES,
    LEAVES,
    MLP,
    MLP_OUTPUT,
    SITE_WIDTH,
    LayerShape,
    expand,
    fold,
)

Masks = dict[str, Tensor]
"""Granularity -> bool [L, n], rows padded with False. All are present whatever has gates, but `mlp_output` only with gates."""


def discretise(log_alpha: Mapping[str, Tensor], shapes: Sequence[LayerShape], sizes: Mapping[str, int]) -> Masks:
    """Masks of one member.

    log_alpha: by granularity, [L, n]. sizes: nodes to keep, by granularity or as `total` site neurons; may be empty.
    Returns the masks of every granularity (`mlp_output` only where it has gates).
    """
    layers = _Layers(log_alpha, shapes)
    open_nodes = {site: strength > 0 for site, strength in layers.strength.items()}
    alive = {site: torch.ones_like(mask) for site, mask in open_nodes.items()}
    forced = {site: torch.zeros_like(mask) for site, mask in open_nodes.items()}
    for name in GRANULARITIES:
        if name in sizes and name not in LEAVES.values():
            layers.keep_strongest_nodes(name, sizes[name], alive, forced)
    for name, sites in [(leaf, (site,)) for site, leaf in LEAVES.items()] + [("total", (ATTENTION, MLP))]:
        if name in sizes:
            layers.keep_strongest_neurons(sites, sizes[name], alive, forced, open_nodes)
    neurons = {site: (open_nodes[site] & alive[site]) | forced[site] for site in open_nodes}
    return layers.masks(neurons)


class _Layers:
    """Strengths of the neurons of each site, all layers in one row, and which node each neuron belongs to."""

    def __init__(self, log_alpha: Mapping[str, Tensor], shapes: Sequence[LayerShape]) -> None:
        self.shapes = shapes
        self.names = [name for name in GRANULARITIES if name in log_alpha]
        self.sites = [site for site in LEAVES if site != MLP_OUTPUT or MLP_OUTPUT in log_alpha]
        self.strength: dict[str, Tensor] = {}
        self.tie_break: dict[str, Tensor] = {}
        for site in self.sites:
            weakest, mean = [], []
            for index, shape in enumerate(shapes):
                gates = {
                    name: log_alpha[name][index, : GRANULARITIES[name].width(shape)].detach().double().cpu()
                    for name in self.names
                }
                open_site = torch.full((SITE_WIDTH[site](shape),), float("inf"), dtype=torch.float64)
                lowest = fold(gates, site, shape, torch.minimum)
                total = fold(gates, site, shape, torch.add)
                weakest.append(open_site if lowest is None else lowest)
                mean.append(torch.zeros_like(open_site) if total is None else total)
            self.strength[site], self.tie_break[site] = torch.cat(weakest), torch.cat(mean)

    def node_of_neuron(self, name: str, site: str) -> Tensor:
        """Number of the node of a granularity, counted over layers, that each neuron of a site belongs to."""
        numbers, offset = [], 0
        for shape in self.shapes:
            width = GRANULARITIES[name].width(shape)
            numbers.append(expand(torch.arange(offset, offset + width), site, shape))
            offset += width
        return torch.cat(numbers)

    def order(self, site: str) -> Tensor:
        """Indices of a site's neurons from strongest to weakest; equal ones by the sum of their chain, then by place."""
        by_tie = torch.argsort(self.tie_break[site], descending=True, stable=True)
        return by_tie[torch.argsort(self.strength[site][by_tie], descending=True, stable=True)]

    def keep_strongest_nodes(self, name: str, size: int, alive: Masks, forced: Masks) -> None:
        """Leave `size` nodes of a coarse granularity alive and force what represents each of them open."""
        sites = [site for site in GRANULARITIES[name].sites if site in self.sites]
        owner = {site: self.node_of_neuron(name, site) for site in sites}
        count = 1 + max(int(owner[site].max()) for site in sites)
        strength = torch.full((count,), -float("inf"), dtype=torch.float64)
        tie = strength.clone()
        for site in sites:
            usable = alive[site]
            strength.scatter_reduce_(0, owner[site][usable], self.strength[site][usable], "amax")
            tie.scatter_reduce_(0, owner[site][usable], self.tie_break[site][usable], "amax")
        by_tie = torch.argsort(tie, descending=True, stable=True)
        order = by_tie[torch.argsort(strength[by_tie], descending=True, stable=True)]
        kept = torch.zeros(count, dtype=torch.bool)
        kept[[node for node in order[:size].tolist() if strength[node] > -float("inf")]] = True
        for site in sites:
            alive[site] &= kept[owner[site]]
        for site in sites:
            forced[site] &= alive[site]
        represented = torch.zeros(count, dtype=torch.bool)
        for site in sites:
            represented[owner[site][forced[site]]] = True
        for site in sites:
            self._force_best(site, owner[site], kept & ~represented, strength, alive, forced)
            represented[owner[site][forced[site]]] = True

    def _force_best(
        self, site: str, owner: Tensor, wanted: Tensor, strength: Tensor, alive: Masks, forced: Masks
    ) -> None:
        """Force the strongest neuron, or the whole finest gate it stands for, of every wanted node open."""
        done = ~wanted
        leaf = self._leaf_of_neuron(site)
        for neuron in self.order(site).tolist():
            node = int(owner[neuron])
            if done[node] or not alive[site][neuron] or self.strength[site][neuron] < strength[node]:
                continue
            forced[site] |= (leaf == leaf[neuron]) & alive[site]
            done[node] = True

    def _leaf_of_neuron(self, site: str) -> Tensor:
        """The finest enabled gate over each neuron; neurons of one leaf open and close together."""
        finest = [name for name in self.names if site in GRANULARITIES[name].sites]
        return self.node_of_neuron(finest[-1] if finest else LEAVES[site], site)

    def keep_strongest_neurons(
        self, sites: Sequence[str], size: int, alive: Masks, forced: Masks, open_nodes: Masks
    ) -> None:
        """Open `size` neurons over the given sites, forced ones first, whole leaves at a time."""
        sites = [site for site in sites if site in self.sites]
        width = [len(self.strength[site]) for site in sites]
        offset, leaves = 0, []
        for site in sites:
            leaves.append(self._leaf_of_neuron(site) + offset)
            offset += int(leaves[-1].max()) + 1
        leaf = torch.cat(leaves)
        strength = torch.cat([self.strength[site] for site in sites])
        strength = strength.masked_fill(~torch.cat([alive[site] for site in sites]), -float("inf"))
        strength = strength.masked_fill(torch.cat([forced[site] for site in sites]), float("inf"))
        tie = torch.cat([self.tie_break[site] for site in sites])
        by_tie = torch.argsort(tie, descending=True, stable=True)
        order = by_tie[torch.argsort(strength[by_tie], descending=True, stable=True)]
        order = order[strength[order] > -float("inf")]
        weight = torch.bincount(leaf, minlength=offset)
        chosen = torch.zeros(offset, dtype=torch.bool)
        ranked = torch.tensor(list(dict.fromkeys(leaf[order].tolist())), dtype=torch.long)
        kept = torch.cumsum(weight[ranked], 0)
        # The number of leaves whose neurons come nearest to the size; one neuron a leaf gives it exactly.
        count = int(torch.argmin((torch.cat([torch.zeros(1), kept]) - size).abs()))
        chosen[ranked[:count]] = True
        for site, part in zip(sites, chosen[leaf].split(width), strict=True):
            open_nodes[site] = part

    def masks(self, neurons: dict[str, Tensor]) -> Masks:
        """Close what has nothing open below it and lay the nodes out as [L, n] by granularity."""
        if MLP_OUTPUT in neurons:
            inside, outside = self.node_of_neuron("mlp", MLP), self.node_of_neuron("mlp", MLP_OUTPUT)
            for node in range(len(self.shapes)):
                if not (neurons[MLP][inside == node].any() and neurons[MLP_OUTPUT][outside == node].any()):
                    neurons[MLP][inside == node] = False
                    neurons[MLP_OUTPUT][outside == node] = False
        return {
            name: self._rows(name, neurons)
            for name in GRANULARITIES
            if name != LEAVES[MLP_OUTPUT] or MLP_OUTPUT in neurons
        }

    def _rows(self, name: str, neurons: dict[str, Tensor]) -> Tensor:
        granularity = GRANULARITIES[name]
        widths = [granularity.width(shape) for shape in self.shapes]
        opened = torch.zeros(sum(widths), dtype=torch.bool)
        for site in granularity.sites:
            if site in neurons:
                opened[self.node_of_neuron(name, site)[neurons[site]]] = True
        rows = torch.zeros(len(widths), max(widths), dtype=torch.bool)
        for index, part in enumerate(opened.split(widths)):
            rows[index, : widths[index]] = part
        return rows


def site_masks(masks: Mapping[str, Tensor], index: int, shape: LayerShape) -> dict[str, Tensor]:
    """Effective masks of one layer, float32 by site [site width], from masks [L, n]."""
    chosen = {site: masks[leaf][index, : SITE_WIDTH[site](shape)] for site, leaf in LEAVES.items() if leaf in masks}
    return {site: mask.float() for site, mask in chosen.items()}


def count(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Nodes kept, by granularity and as `total` site neurons."""
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    return counts | {"total": counts["attention_neuron"] + counts["mlp_neuron"]}
