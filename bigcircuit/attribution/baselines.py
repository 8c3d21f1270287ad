"""What learned masks have to beat: node scores by other methods, on the same nodes, pairs and ablation.

Each method scores the nodes of every granularity. Where it is a gradient, the score of a coarse node is the sum of the signed
ones of its neurons, because that is exactly the gradient with respect to a gate above them. `mlp_output` is scored where
that needs no path of its own.

KL(reference || circuit) has no gradient at the full model, where it is smallest: methods that look there alone use the logit
difference or the cross-entropy of the right answers.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from bigcircuit.attribution.mask_gradients import integrated_gradients, mask_gradients, zeros
from bigcircuit.attribution.node_scores import NodeScores, aggregate, node_scores
from bigcircuit.data.collate import Batch
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.logit_metrics import contrast
from bigcircuit.model.granularity import ATTENTION, GRANULARITIES, LEAVES, MLP, MLP_OUTPUT
from bigcircuit.model.zero3 import gathered

Baseline = Callable[[Streams, Sequence[Example], MicroBatches], NodeScores]

_SITES = (ATTENTION, MLP, MLP_OUTPUT)
_ROWS = 1024
"""Rows of the identity that go through a projection at once."""


def by_integrated_gradients(
    streams: Streams, examples: Sequence[Example], passes: MicroBatches, points: int = 10
) -> NodeScores:
    """Nats of KL that opening a node takes away on the path from the empty circuit to the full model; not `mlp_output`."""
    found = integrated_gradients(streams, examples, passes, points=points)
    return node_scores(aggregate(found, streams.frozen.shapes, lambda neurons: neurons.sum(-1)))


def by_attribution_patching(streams: Streams, examples: Sequence[Example], passes: MicroBatches) -> NodeScores:
    """First-order estimate of how much the logit difference falls when a node of the full model is ablated.

    Nanda 2023 (Attribution Patching), Syed et al. 2023 (arXiv 2310.10348, eq. 1), with the gradient on the clean prompt.
    """
    return _gradients_at_full(streams, examples, passes, lambda *a: _contrast(*a).logit_difference, lambda each: each)


def by_head_importance(streams: Streams, examples: Sequence[Example], passes: MicroBatches) -> NodeScores:
    """Mean over examples of |d loss / d mask| at the full model, loss = cross-entropy of the right answers.

    HISP, Michel et al. 2019 (arXiv 1905.10650, eq. 2), for nodes of every kind and with the ablation's baseline.
    """
    return _gradients_at_full(streams, examples, passes, lambda *a: _contrast(*a).cross_entropy, torch.abs)


def _contrast(_: Tensor, logits: Tensor, batch: Batch):
    return contrast(logits, batch)


def _gradients_at_full(
    streams: Streams,
    examples: Sequence[Example],
    passes: MicroBatches,
    measure: Callable[[Tensor, Tensor, Batch], Tensor],
    each: Callable[[Tensor], Tensor],
) -> NodeScores:
    """Mean over examples of a function of each node's gradient."""
    total = {name: zeros(streams, name) for name in GRANULARITIES}
    for piece, gradients in mask_gradients(streams, examples, passes, measure, [1.0], _SITES):
        nodes = aggregate(gradients, streams.frozen.shapes, lambda neurons: neurons.double().sum(-1))
        for name, layers in nodes.items():
            for sums, gradient in zip(total[name], layers, strict=True):
                sums += each(gradient).sum(0) * piece.counts / len(examples)
    passes.ranks.sum_([sums for layers in total.values() for sums in layers])
    return node_scores(total)


def by_activation_magnitude(streams: Streams, examples: Sequence[Example], passes: MicroBatches) -> NodeScores:
    """Size of what a node writes: Frobenius norm, over its weights in the projection, of |weight| x RMS of its input.

    The score of a weight is that of Wanda (Sun et al. 2023, arXiv 2306.11695, eq. 1) up to the number of tokens, which are those
    of the clean prompts; for a neuron this is the RMS of its activation times the norm of its column. Knows no ablation.
    """
    squares = _mean_squares(streams, examples, passes)
    written: dict[str, list[Tensor]] = {ATTENTION: [], MLP: [], MLP_OUTPUT: []}
    for index, layer in enumerate(streams.frozen.layers):
        written[ATTENTION].append(_written(streams, layer.attention, squares[ATTENTION][index])[0])
        by_neuron, by_output = _written(streams, layer.mlp, squares[MLP][index])
        written[MLP].append(by_neuron)
        written[MLP_OUTPUT].append(by_output)
    return node_scores(aggregate(written, streams.frozen.shapes, lambda neurons: neurons.sum(-1).sqrt()))


def _mean_squares(streams: Streams, examples: Sequence[Example], passes: MicroBatches) -> dict[str, list[Tensor]]:
    """Mean square over tokens of the inputs of both projections, float64 [w] by site and layer."""
    total = {site: zeros(streams, LEAVES[site]) for site in (ATTENTION, MLP)}
    tokens = torch.zeros(1, dtype=torch.float64, device=streams.frozen.device)
    for piece in passes.over(examples, full=False):
        passes.ranks.stop_if_asked()
        if piece.batch.attention_mask is None:
            real = torch.ones_like(piece.batch.clean, dtype=torch.bool)
        else:
            real = piece.batch.attention_mask.bool()

        def add(index: int, site: str, value: Tensor, real: Tensor = real, counts: bool = piece.counts) -> None:
            if site in total and counts:
                total[site][index] += value[real].double().square().sum(0)

        streams.watch(piece.batch, piece.batch.clean, add)
        tokens += real.sum() * piece.counts
    passes.ranks.sum_([tokens, *(sums for layers in total.values() for sums in layers)])
    return {site: [sums / tokens for sums in layers] for site, layers in total.items()}


@torch.no_grad()
def _written(streams: Streams, projection: nn.Module, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Sums of weight^2 x mean square of the input over each column [w] and each row [D] of a projection, float64.

    The weights are read off what the projection makes of unit vectors, and so are those of an adapter in it.
    """
    like = {"dtype": streams.frozen.model.dtype, "device": streams.frozen.device}
    columns = []
    by_row: Tensor | float = 0.0
    with gathered(streams.frozen, projection):
        bias = projection(torch.zeros(1, len(squares), **like)).double()
        for first in range(0, len(squares), _ROWS):
            part = squares[first : first + _ROWS]
            units = torch.zeros(len(part), len(squares), **like)
            units[torch.arange(len(part)), first + torch.arange(len(part))] = 1
            scores = (projection(units).double() - bias).square() * part.unsqueeze(1)
            columns.append(scores.sum(1))
            by_row = by_row + scores.sum(0)
    return torch.cat(columns), by_row


def by_chance(streams: Streams, _: Sequence[Example], __: MicroBatches, seed: int = 0) -> NodeScores:
    """Uniform scores, each granularity drawn by itself."""
    generator = torch.Generator().manual_seed(seed)
    return node_scores({
        name: [torch.rand(granularity.width(shape), generator=generator) for shape in streams.frozen.shapes]
        for name, granularity in GRANULARITIES.items()
    })  # fmt: skip


BASELINES: dict[str, Baseline] = {
    "integrated_gradients": by_integrated_gradients,
    "attribution_patching": by_attribution_patching,
    "head_importance": by_head_importance,
    "activation_magnitude": by_activation_magnitude,
    "random": by_chance,
}
"""Name of a method -> its scores under the ablation of the streams. All ranks call it and all get all scores."""
