"""Attribution by gradients with respect to the effective masks: used by baselines, and to warm-start the gates.

A mask multiplies (activation - what it is ablated to), so its gradient is the usual "gradient times difference".

Shapes: B examples of a pass, S scored positions, V vocabulary, w width of a site in one layer.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from bigcircuit.data.micro_batches import MicroBatch, MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.forward.plain_passes import plain_passes
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.compare import compare_pass
from bigcircuit.model.granularity import GRANULARITIES, LEAVES, SITE_WIDTH, sites_of

Measure = Callable[[Any], Tensor]
"""A `PassComparison` of one circuit with the full model -> a number an example, [1, B]."""


def mask_gradients(
    streams: Streams,
    examples: Sequence[Example],
    micro_batches: MicroBatches,
    measure: Measure,
    openings: Sequence[float],
    sites: Sequence[str],
    *,
    phase: str,
) -> Iterator[tuple[MicroBatch, dict[str, list[Tensor]]]]:
    """Yield, for every micro-batch of this rank and every opening, the gradient of a measure for each example.

    openings: values of all masks at which the gradient is taken; 1 is the full model. phase: name under which the passes are
    shown. Yields site -> one tensor [B, w] a layer.
    """
    shapes, device = streams.frozen.shapes, streams.frozen.device
    with micro_batches.progress.phase(phase, micro_batches.count(len(examples)) * len(openings)) as passes:
        for micro_batch, reference, corrupted in plain_passes(streams, micro_batches, examples, sites, full=False):
            for opening in openings:
                masks = {
                    site: [
                        torch.full(
                            (1, len(micro_batch.examples), SITE_WIDTH[site](s)), opening, device=device
                        ).requires_grad_()
                        for s in shapes
                    ]
                    for site in sites
                }
                found = compare_pass(streams, micro_batch.batch, _source(masks), 1, reference, corrupted)
                loss = measure(found).sum()
                leaves = [mask for layers in masks.values() for mask in layers]
                # Layers without a site have masks of no neurons, which nothing depends on.
                own = iter(torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True))
                streams.frozen.release_gathered()
                yield micro_batch, {site: [next(own)[0] for _ in layers] for site, layers in masks.items()}
                passes.advance()


def _source(masks: dict[str, list[Tensor]]) -> Callable[[int], dict[str, Tensor]]:
    return lambda index: {site: layers[index] for site, layers in masks.items()}


def integrated_gradients(
    streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches, *, points: int
) -> dict[str, list[Tensor]]:
    """Measure how much opening each site neuron lowers KL(reference || circuit): site -> one tensor [w] a layer.

    Sundararajan et al. 2017 (arXiv 1703.01365, eq. 3), midpoint rule, along the straight path on which all effective
    masks go from 0 (everything ablated) to 1 (the full model) together. Units: nats a neuron, summing to the KL at 0.
    """
    openings = [(point + 0.5) / points for point in range(points)]
    sites = [site for site in sites_of(streams.frozen.shapes, ()) if streams.ablation.covers(site)]
    total = {site: zeros(streams, LEAVES[site]) for site in sites}
    found = mask_gradients(
        streams, examples, micro_batches, lambda compared: compared.kl, openings, sites, phase="integrated gradients"
    )
    for micro_batch, gradients in found:
        for site, layers in gradients.items():
            for sums, gradient in zip(total[site], layers, strict=True):
                sums -= gradient.double().sum(0) * micro_batch.is_counted / (points * len(examples))
    micro_batches.ranks.all_reduce([sums for layers in total.values() for sums in layers])
    return {site: [sums.float() for sums in layers] for site, layers in total.items()}


def zeros(streams: Streams, granularity: str) -> list[Tensor]:
    """Make zeros to which sums over examples and ranks are added: float64 [n] for the nodes of each layer."""
    widths = [GRANULARITIES[granularity].width(shape) for shape in streams.frozen.shapes]
    return [torch.zeros(width, dtype=torch.float64, device=streams.frozen.device) for width in widths]


def rank_scores(scores: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """Replace scores by their rank over all site neurons, spread evenly from -1 (lowest) to 1 (highest).

    scores: site -> one tensor [w] a layer; returns the same shapes.
    """
    flat = torch.cat([row for rows in scores.values() for row in rows])
    ranks = torch.empty_like(flat)
    ranks[torch.argsort(flat)] = torch.linspace(-1, 1, len(flat), device=flat.device)
    parts = iter(ranks.split([len(row) for rows in scores.values() for row in rows]))
    return {site: [next(parts) for _ in rows] for site, rows in scores.items()}
