"""Scores of nodes at every granularity: their form, and scores from learned gates.

Shapes: L layers, n nodes of a granularity in the widest layer, w width of a site in one layer.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bigcircuit.model.granularity import (
    COUNTED,
    GRANULARITIES,
    LEAVES,
    MLP_OUTPUT,
    SITE_WIDTH,
    LayerShape,
    fold,
    granularities_of,
    sites_of,
)

NodeScores = dict[str, Tensor]
"""Granularity -> float32 [L, n], higher is more important; rows of narrower layers are padded with 0."""

SiteRows = Mapping[str, Sequence[Tensor]]
"""Site -> one tensor [..., w] a layer."""

LEVELS = {"neuron": tuple(LEAVES[site] for site in COUNTED)} | {name: (name,) for name in GRANULARITIES}
"""What can be ranked: `neuron` (neurons of attention, mixers and MLPs together) or the nodes of one granularity."""


def level_size(level: str, shapes: Sequence[LayerShape]) -> int:
    """Count the nodes of a level."""
    return sum(GRANULARITIES[name].width(shape) for name in LEVELS[level] for shape in shapes)


def flat(nodes: Mapping[str, Tensor], level: str, shapes: Sequence[LayerShape]) -> Tensor:
    """Concatenate the nodes of a level without padding: granularity by granularity, layer by layer."""
    return torch.cat([
        nodes[name][index, : GRANULARITIES[name].width(shape)]
        for name in LEVELS[level]
        if name in nodes
        for index, shape in enumerate(shapes)
    ])  # fmt: skip


def rows(parts: Sequence[Tensor]) -> Tensor:
    """Stack rows of different lengths to one tensor [L, n], padded with 0."""
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def aggregate(
    values: SiteRows, shapes: Sequence[LayerShape], combine: Callable[[Tensor], Tensor]
) -> dict[str, list[Tensor]]:
    """Combine values of neurons into values of nodes: granularity -> one tensor [..., n] a layer.

    combine: function over the neurons of a node, [..., n, neurons] -> [..., n]. Outputs of the MLP are in no coarser node: they
    are on the same paths as the neurons of the MLP, which would count twice.
    """
    found: dict[str, list[Tensor]] = {}
    for name in granularities_of(shapes):
        granularity = GRANULARITIES[name]
        sites = [s for s in granularity.sites if s in values and (s != MLP_OUTPUT or name == LEAVES[MLP_OUTPUT])]
        if not sites:
            continue
        found[name] = [
            combine(torch.cat([_by_node(values[site][index], granularity.width(shape)) for site in sites], -1))
            for index, shape in enumerate(shapes)
        ]  # fmt: skip
    return found


def _by_node(neurons: Tensor, nodes: int) -> Tensor:
    """Reshape [..., w] to [..., nodes, neurons of a node], which may be none of either."""
    return neurons.reshape(*neurons.shape[:-1], nodes, neurons.shape[-1] // max(nodes, 1))


def node_scores(values: Mapping[str, Sequence[Tensor]]) -> NodeScores:
    """Convert values by granularity and layer to NodeScores: float32 [L, n] on CPU."""
    return {name: rows([row.float().cpu() for row in layers]) for name, layers in values.items()}


def strengths(log_alpha: Mapping[str, Tensor], shapes: Sequence[LayerShape]) -> NodeScores:
    """Rank nodes by learned gates: neurons in the order in which `discretise` keeps them, as ranks from 0 (weakest) up.

    The strength of a neuron is the weakest gate of its chain, among equals the sum of the chain. A coarser node has the sum over
    its neurons of the sigmoid of their weakest log_alpha, about the number of its open neurons, and not its strongest neuron as in
    `discretise`: for sizes in neurons this ranks better (benchmarks/LOG.md). Neurons without gates are open.
    """
    chains: dict[str, list[Tensor]] = {site: [] for site in sites_of(shapes, log_alpha) if site != MLP_OUTPUT}
    for index, shape in enumerate(shapes):
        gates = {
            name: values[index, : GRANULARITIES[name].width(shape)].detach().double().cpu()
            for name, values in log_alpha.items()
        }
        for site, layers in chains.items():
            weakest, total = (fold(gates, site, shape, combine) for combine in (torch.minimum, torch.add))
            if weakest is None or total is None:
                layers.append(torch.full((2, SITE_WIDTH[site](shape)), torch.inf, dtype=torch.float64))
            else:
                layers.append(torch.stack([weakest, total]))
    all_layers = [chain for layers in chains.values() for chain in layers]
    ranks = torch.unique(torch.cat(all_layers, dim=1), dim=1, return_inverse=True)[1]
    parts = iter(ranks.split([chain.shape[1] for chain in all_layers]))
    ordered = {site: [next(parts) for _ in layers] for site, layers in chains.items()}
    opened = {site: [chain[0].sigmoid() for chain in layers] for site, layers in chains.items()}
    coarse = aggregate(opened, shapes, lambda neurons: neurons.sum(-1))
    return node_scores(coarse | {LEAVES[site]: layers for site, layers in ordered.items()})
