"""Scores of nodes at every granularity: how importance is written down, whoever found it.

Shapes: L layers, n nodes of a granularity in the widest layer, w width of a site in one layer.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bigcircuit.model.granularity import ATTENTION, GRANULARITIES, LEAVES, MLP, MLP_OUTPUT, SITE_WIDTH, LayerShape, fold

NodeScores = dict[str, Tensor]
"""Granularity -> float32 [L, n], higher is more important; rows of narrower layers are padded with 0."""

SiteRows = Mapping[str, Sequence[Tensor]]
"""Site -> one tensor [..., w] a layer."""

LEVELS = {"neuron": (LEAVES[ATTENTION], LEAVES[MLP])} | {name: (name,) for name in GRANULARITIES}
"""What can be ranked: `neuron` (attention and MLP neurons together) or the nodes of one granularity."""


def level_size(level: str, shapes: Sequence[LayerShape]) -> int:
    """How many nodes a level has."""
    return sum(GRANULARITIES[name].width(shape) for name in LEVELS[level] for shape in shapes)


def flat(nodes: Mapping[str, Tensor], level: str, shapes: Sequence[LayerShape]) -> Tensor:
    """The nodes of a level in one row without padding: granularity by granularity, layer by layer."""
    return torch.cat([
        nodes[name][index, : GRANULARITIES[name].width(shape)]
        for name in LEVELS[level]
        for index, shape in enumerate(shapes)
    ])  # fmt: skip


def rows(parts: Sequence[Tensor]) -> Tensor:
    """Rows of different lengths as one tensor [L, n], padded with 0."""
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def aggregate(
    values: SiteRows, shapes: Sequence[LayerShape], combine: Callable[[Tensor], Tensor]
) -> dict[str, list[Tensor]]:
    """Combine what is known of neurons into nodes of every granularity, a list of [..., n] each, one a layer.

    combine: over the neurons of a node, [..., n, neurons] -> [..., n]. Outputs of the MLP make up no coarser node: they lie
    on the same paths as the neurons of the MLP, which would count twice.
    """
    found: dict[str, list[Tensor]] = {}
    for name, granularity in GRANULARITIES.items():
        sites = [s for s in granularity.sites if s in values and (s != MLP_OUTPUT or name == LEAVES[MLP_OUTPUT])]
        if not sites:
            continue
        found[name] = [
            combine(torch.cat([values[site][index].unflatten(-1, (granularity.width(shape), -1)) for site in sites], -1))
            for index, shape in enumerate(shapes)
        ]  # fmt: skip
    return found


def node_scores(values: Mapping[str, Sequence[Tensor]]) -> NodeScores:
    """Rows of every granularity as they are kept: float32 [L, n] on CPU."""
    return {name: rows([row.float().cpu() for row in layers]) for name, layers in values.items()}


def strengths(log_alpha: Mapping[str, Tensor], shapes: Sequence[LayerShape]) -> NodeScores:
    """The ranking of learned gates: of neurons the order in which `discretise` keeps them, as places from 0 (weakest) up.

    A neuron is as strong as the weakest gate of its chain, among equals by the sum. A coarser node has the sum over
    its neurons of the sigmoid of their weakest log_alpha, about as many as are open in it, and not the strongest of them as in
    `discretise`: where neurons were asked for that says more of it (benchmarks/LOG.md). Neurons without gates are open.
    """
    chains: dict[str, list[Tensor]] = {ATTENTION: [], MLP: []}
    for index, shape in enumerate(shapes):
        gates = {
            name: values[index, : GRANULARITIES[name].width(shape)].detach().double().cpu()
            for name, values in log_alpha.items()
        }
        for site, layers in chains.items():
            both = [fold(gates, site, shape, combine) for combine in (torch.minimum, torch.add)]
            open_site = torch.full((2, SITE_WIDTH[site](shape)), torch.inf, dtype=torch.float64)
            layers.append(open_site if both[0] is None else torch.stack(both))
    every = [chain for layers in chains.values() for chain in layers]
    places = torch.unique(torch.cat(every, dim=1), dim=1, return_inverse=True)[1]
    parts = iter(places.split([chain.shape[1] for chain in every]))
    ordered = {site: [next(parts) for _ in layers] for site, layers in chains.items()}
    opened = {site: [chain[0].sigmoid() for chain in layers] for site, layers in chains.items()}
    coarse = aggregate(opened, shapes, lambda neurons: neurons.sum(-1))
    return node_scores(coarse | {LEAVES[site]: layers for site, layers in ordered.items()})
