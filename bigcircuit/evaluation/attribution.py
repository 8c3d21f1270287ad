"""Attribution of the loss to the effective masks: a baseline by itself, and a warm start for the gates."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bigcircuit.gates.granularity import ATTENTION, MLP, SITE_WIDTH
from bigcircuit.objective import kl_divergence
from bigcircuit.streams import Streams
from bigcircuit.tasks.pair import Example
from bigcircuit.tasks.passes import Passes


def integrated_gradients(
    streams: Streams, examples: Sequence[Example], passes: Passes, *, points: int
) -> dict[str, list[Tensor]]:
    """How much opening each site neuron lowers KL(reference || circuit), by site a list of [n], one a layer.

    Sundararajan et al. 2017 (arXiv 1703.01365, eq. 3), midpoint rule, along the straight path on which all effective
    masks go from 0 (everything ablated) to 1 (the full model) together. Units: nats a neuron, summing to the KL at 0.
    """
    device = streams.frozen.device
    masks = {
        site: [torch.zeros(1, 1, SITE_WIDTH[site](shape), device=device) for shape in streams.frozen.shapes]
        for site in (ATTENTION, MLP)
    }
    total = {site: [torch.zeros_like(mask) for mask in rows] for site, rows in masks.items()}
    flat = [mask.requires_grad_() for rows in masks.values() for mask in rows]
    sums_by_layer = [sums for rows in total.values() for sums in rows]
    for piece in passes.over(examples, full=False):
        passes.ranks.stop_if_asked()
        reference = streams.reference(piece.batch)
        for point in range(points):
            with torch.no_grad():
                for mask in flat:
                    mask.fill_((point + 0.5) / points)
            logits = streams.masked(piece.batch, lambda index: {site: rows[index] for site, rows in masks.items()}, 1)
            gradients = torch.autograd.grad(kl_divergence(reference, logits, piece.batch).sum(), flat)
            streams.frozen.settle()
            for sums, gradient in zip(sums_by_layer, gradients, strict=True):
                sums -= gradient * piece.counts / (points * len(examples))
    passes.ranks.sum_(sums_by_layer)
    return {site: [sums[0, 0] for sums in rows] for site, rows in total.items()}


def rank_scores(scores: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """Replace scores by their rank over all site neurons, spread evenly from -1 (lowest) to 1 (highest)."""
    flat = torch.cat([row for rows in scores.values() for row in rows])
    places = torch.empty_like(flat)
    places[torch.argsort(flat)] = torch.linspace(-1, 1, len(flat), device=flat.device)
    parts = iter(places.split([len(row) for rows in scores.values() for row in rows]))
    return {site: [next(parts) for _ in rows] for site, rows in scores.items()}
