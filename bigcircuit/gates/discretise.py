"""The one definition of a discretised mask: for counting, validation, evaluation, the size that was asked, and the file.

A node is open when its own gate and every gate above it has log_alpha > 0, and something below it is open. Where sizes are
asked for, the strongest nodes are taken instead of those above 0: the strength of a neuron is the weakest log_alpha of its
chain, that of a coarser node the strength of its strongest neuron.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from bigcircuit.model.granularity import (
    COUNTED,
    GRANULARITIES,
    LEAVES,
    MLP,
    MLP_OUTPUT,
    SITE_WIDTH,
    LayerShape,
    count_total,
    expand,
    finest,
    fold,
    granularities_of,
    has_masks,
    sites_of,
    widest,
)

Masks = dict[str, Tensor]
"""Granularity -> bool [L, n], rows padded with False. All that the model has nodes of are present whatever has gates, but
`mlp_output` and `expert_neuron` only with gates."""


def discretise(log_alpha: Mapping[str, Tensor], shapes: Sequence[LayerShape], sizes: Mapping[str, int]) -> Masks:
    """Decide the masks of one member.

    log_alpha: by granularity, [L, n]. sizes: nodes to keep, by granularity or as `total` site neurons; may be empty.
    Returns the masks of every granularity of the model (`mlp_output` and `expert_neuron` only where they have gates).
    """
    layers = _Layers(log_alpha, shapes)
    open_nodes = {site: strength > 0 for site, strength in layers.strength.items()}
    alive = {site: torch.ones_like(mask) for site, mask in open_nodes.items()}
    forced = {site: torch.zeros_like(mask) for site, mask in open_nodes.items()}
    coarse = [name for name in GRANULARITIES if name in sizes and name not in {LEAVES[site] for site in layers.sites}]
    chosen = {name: layers.keep_strongest_nodes(name, sizes[name], alive) for name in coarse}
    for name in coarse:  # after all choices, because a finer one may have closed what stood for a coarser node
        layers.represent(name, chosen[name], alive, forced)
    for name, sites in [(LEAVES[site], (site,)) for site in layers.sites] + [("total", COUNTED)]:
        if name in sizes:
            layers.keep_strongest_neurons(sites, sizes[name], alive, forced, open_nodes)
    neurons = {site: (open_nodes[site] & alive[site]) | forced[site] for site in open_nodes}
    return layers.masks(neurons)


class _Layers:
    """Strengths of the neurons of each site, all layers in one row, and which node each neuron belongs to."""

    def __init__(self, log_alpha: Mapping[str, Tensor], shapes: Sequence[LayerShape]) -> None:
        self.shapes = shapes
        self.names = [name for name in GRANULARITIES if name in log_alpha]
        self.sites = sites_of(shapes, log_alpha)
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
        """Number the nodes of a granularity over all layers, and return the number that each neuron of a site belongs to."""
        numbers, offset = [], 0
        for shape in self.shapes:
            width = GRANULARITIES[name].width(shape)
            numbers.append(expand(torch.arange(offset, offset + width), site, shape))
            offset += width
        return torch.cat(numbers)

    def keep_strongest_nodes(self, name: str, size: int, alive: Masks) -> Tensor:
        """Keep the neurons of the `size` strongest nodes of a coarse granularity alive. Returns which nodes, bool [nodes]."""
        owner = self._owners(name)
        count = self._count(name)
        strength = torch.full((count,), -float("inf"), dtype=torch.float64)
        tie = strength.clone()
        for site, numbers in owner.items():
            usable = alive[site]
            strength.scatter_reduce_(0, numbers[usable], self.strength[site][usable], "amax")
            tie.scatter_reduce_(0, numbers[usable], self.tie_break[site][usable], "amax")
        kept = torch.zeros(count, dtype=torch.bool)
        kept[[node for node in _strongest_first(strength, tie)[:size].tolist() if strength[node] > -float("inf")]] = (
            True
        )
        for site, numbers in owner.items():
            alive[site] &= kept[numbers]
        return kept

    def represent(self, name: str, kept: Tensor, alive: Masks, forced: Masks) -> None:
        """Force open the strongest leaf of every kept node in which no leaf is forced open yet."""
        owner = self._owners(name)
        wanted = kept.clone()
        for site, numbers in owner.items():
            wanted[numbers[forced[site]]] = False
        for node in wanted.nonzero().flatten().tolist():
            best = []
            for site, numbers in owner.items():
                inside = ((numbers == node) & alive[site]).nonzero().flatten()
                if len(inside):
                    first = inside[_strongest_first(self.strength[site][inside], self.tie_break[site][inside])[0]]
                    best.append((float(self.strength[site][first]), site, int(first)))
            if best:
                _, site, neuron = max(best, key=lambda item: item[0])
                leaf = self._leaf_of_neuron(site)
                forced[site] |= (leaf == leaf[neuron]) & alive[site]

    def _count(self, name: str) -> int:
        return sum(GRANULARITIES[name].width(shape) for shape in self.shapes)

    def _owners(self, name: str) -> dict[str, Tensor]:
        return {site: self.node_of_neuron(name, site) for site in GRANULARITIES[name].sites if site in self.sites}

    def _leaf_of_neuron(self, site: str) -> Tensor:
        """Number of the finest enabled gate over each neuron; neurons of one leaf open and close together."""
        return self.node_of_neuron(finest(self.names, site) or LEAVES[site], site)

    def keep_strongest_neurons(
        self, sites: Sequence[str], size: int, alive: Masks, forced: Masks, open_nodes: Masks
    ) -> None:
        """Open `size` neurons over the given sites, forced ones first, whole leaves at a time."""
        sites = [site for site in sites if site in self.sites]
        width = [len(self.strength[site]) for site in sites]
        offset, leaves = 0, []
        for site in sites:
            leaves.append(self._leaf_of_neuron(site) + offset)
            offset += self._count(finest(self.names, site) or LEAVES[site])
        leaf = torch.cat(leaves)
        strength = torch.cat([self.strength[site] for site in sites])
        strength = strength.masked_fill(~torch.cat([alive[site] for site in sites]), -float("inf"))
        strength = strength.masked_fill(torch.cat([forced[site] for site in sites]), float("inf"))
        tie = torch.cat([self.tie_break[site] for site in sites])
        order = _strongest_first(strength, tie)
        order = order[strength[order] > -float("inf")]
        weight = torch.bincount(leaf, minlength=offset)
        chosen = torch.zeros(offset, dtype=torch.bool)
        ranked = _in_order_of_appearance(leaf[order], offset)
        kept = torch.cumsum(weight[ranked], 0)
        # The number of leaves whose neurons come nearest to the size; one neuron a leaf gives it exactly.
        count = int(torch.argmin((torch.cat([kept.new_zeros(1), kept]) - size).abs()))
        chosen[ranked[:count]] = True
        for site, part in zip(sites, chosen[leaf].split(width), strict=True):
            open_nodes[site] = part

    def masks(self, neurons: dict[str, Tensor]) -> Masks:
        """Close nodes without an open neuron and lay all nodes out as [L, n] by granularity."""
        if MLP_OUTPUT in neurons:
            inside, outside = self.node_of_neuron("mlp", MLP), self.node_of_neuron("mlp", MLP_OUTPUT)
            for node in set(outside.tolist()):
                if not (neurons[MLP][inside == node].any() and neurons[MLP_OUTPUT][outside == node].any()):
                    neurons[MLP][inside == node] = False
                    neurons[MLP_OUTPUT][outside == node] = False
        return {
            name: self._rows(name, neurons)
            for name in granularities_of(self.shapes)
            if any(site in neurons for site in GRANULARITIES[name].sites)
        }

    def _rows(self, name: str, neurons: dict[str, Tensor]) -> Tensor:
        granularity = GRANULARITIES[name]
        widths = [granularity.width(shape) for shape in self.shapes]
        opened = torch.zeros(sum(widths), dtype=torch.bool)
        for site in granularity.sites:
            if site in neurons:
                opened[self.node_of_neuron(name, site)[neurons[site]]] = True
        rows = torch.zeros(len(widths), widest(self.shapes, name), dtype=torch.bool)
        for index, part in enumerate(opened.split(widths)):
            rows[index, : widths[index]] = part
        return rows


def _strongest_first(strength: Tensor, tie: Tensor) -> Tensor:
    """Sort indices from strongest to weakest; equal strengths by `tie`, the sum of the chain, then by place."""
    by_tie = torch.argsort(tie, descending=True, stable=True)
    return by_tie[torch.argsort(strength[by_tie], descending=True, stable=True)]


def _in_order_of_appearance(values: Tensor, bound: int) -> Tensor:
    """Return the distinct values, integers from 0 to below `bound`, by their first places; in tensors, as there are millions."""
    first = torch.full((bound,), len(values)).scatter_reduce_(0, values, torch.arange(len(values)), "amin")
    return torch.argsort(first)[: int((first < len(values)).sum())]


def site_masks(masks: Mapping[str, Tensor], index: int, shape: LayerShape) -> dict[str, Tensor]:
    """Select the effective masks of one layer from masks [L, n]; float32 by site, [site width]."""
    chosen = {
        site: masks[leaf][index, : SITE_WIDTH[site](shape)]
        for site, leaf in LEAVES.items()
        if leaf in masks and has_masks(site, masks) and SITE_WIDTH[site](shape)
    }
    return {site: mask.float() for site, mask in chosen.items()}


def count(masks: Mapping[str, Tensor]) -> dict[str, int]:
    """Count the nodes kept, by granularity and as `total` site neurons."""
    counts = {name: int(mask.sum()) for name, mask in masks.items()}
    return counts | {"total": count_total(counts)}
