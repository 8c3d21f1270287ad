"""Scores of the literature on pruning, of weights and activations alone: no gradient and no ablation is needed.

Shapes: L layers, R rows of a batch, T tokens, D hidden size, w width of a site in one layer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bigcircuit.attribution.activations import watch_clean
from bigcircuit.attribution.mask_gradients import zeros
from bigcircuit.attribution.node_scores import NodeScores, aggregate, node_scores
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.forward.activation_means import moments
from bigcircuit.forward.experts import Added
from bigcircuit.forward.pass_inputs import hidden_of
from bigcircuit.forward.streams import Streams
from bigcircuit.model.granularity import (
    EXPERT,
    GRANULARITIES,
    LEAVES,
    MLP,
    MLP_OUTPUT,
    SITE_WIDTH,
    VALUE_WIDTH,
    granularities_of,
    sites_of,
)
from bigcircuit.model.sites import FrozenModel
from bigcircuit.model.zero3 import gathered

_ROWS = 1024
"""Rows of the identity that pass a projection at once."""


def by_activation_magnitude(streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches) -> NodeScores:
    """Score nodes by the size of what they write: Frobenius norm over a node's weights of |weight| x RMS of the weight's input.

    The score of a weight is that of Wanda (Sun et al. 2023, arXiv 2306.11695, eq. 1) up to the number of tokens, which are those
    of the clean prompts; for a neuron this is the RMS of its activation times the norm of its column. Independent of the ablation.
    """
    written = _squared_weights(streams, _mean_squares(streams, examples, micro_batches))
    return node_scores(aggregate(written, streams.frozen.shapes, lambda neurons: neurons.sum(-1).sqrt()))


def _squared_weights(streams: Streams, squares: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """Sum weight^2 x `squares` of its input, [w] by site and layer, over the weights of every neuron and output of an MLP."""
    written: dict[str, list[Tensor]] = {site: [] for site in (*squares, MLP_OUTPUT)}
    for index, layer in enumerate(streams.frozen.layers):
        for site, layers in squares.items():
            by_neuron, by_output = layers[index], layers[index][:0]
            if site in layer.sites and site != EXPERT:  # what experts add is measured behind their weights
                by_neuron, by_output = _written(streams, layer.sites[site], layers[index])
            written[site].append(by_neuron)
            if site == MLP:
                written[MLP_OUTPUT].append(by_output)
    return written


def _mean_squares(
    streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches
) -> dict[str, list[Tensor]]:
    """Average the squared inputs of the projections over tokens, and of what experts add: float64 [w] by site and layer."""
    total = {site: zeros(streams, LEAVES[site]) for site in sites_of(streams.frozen.shapes, ())}

    def add(index: int, site: str, value: Tensor) -> None:
        if site in total:
            total[site][index] += value.double().square().sum(0)

    def add_experts(index: int, found: Added) -> None:
        total[EXPERT][index] += found.norms(len(total[EXPERT][index])).double().square().sum(0)

    tokens = watch_clean(streams, examples, micro_batches, add, add_experts, "activation magnitudes")
    micro_batches.ranks.all_reduce([tokens, *(sums for layers in total.values() for sums in layers)])
    return {site: [sums / tokens for sums in layers] for site, layers in total.items()}


@torch.no_grad()
def _written(streams: Streams, projection: nn.Module, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Sum weight^2 x mean square of the input over each column [w] and each row [D] of a projection, float64.

    The weights are read from the projection's outputs for unit vectors, which includes the weights of an adapter.
    """
    like = {"dtype": streams.frozen.model.dtype, "device": streams.frozen.device}
    columns = []
    by_row = torch.zeros((), dtype=torch.float64, device=streams.frozen.device)
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


def by_weight_magnitude(streams: Streams, _: Sequence[Example], __: MicroBatches) -> NodeScores:
    """Score nodes by the norm of the weights by which they write: no data, no gradient.

    Magnitude pruning, Han et al. 2015 (arXiv 1506.02626), with the weights of a node as one group.
    """
    shapes = streams.frozen.shapes
    ones = {site: [torch.ones_like(one) for one in zeros(streams, LEAVES[site])] for site in sites_of(shapes, ())}
    return node_scores(aggregate(_squared_weights(streams, ones), shapes, lambda neurons: neurons.sum(-1).sqrt()))


def by_fluctuation(streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches) -> NodeScores:
    """Score nodes by how much what they write varies: variance of the activation x squared norm of its weights.

    FLAP, An et al. 2023 (arXiv 2312.11983, eq. 4), standardised over the neurons of each layer and site as there (eq. 5), so that
    layers compare. Meant for mean ablation, which is FLAP's bias. A coarser node has the mean over its neurons.
    """
    found = moments(streams.frozen, examples, micro_batches, per_position=False, prompts="clean")
    shapes = streams.frozen.shapes
    variances = {
        site: [
            # Of an expert the sum over all D values that it writes.
            found.deviation[site][index, : VALUE_WIDTH[site](shape)]
            .double()
            .square()
            .view(SITE_WIDTH[site](shape), -1 if VALUE_WIDTH[site](shape) else 0)
            .sum(1)
            for index, shape in enumerate(shapes)
        ]
        for site in sites_of(shapes, ())
    }
    scores = {
        site: [(one - one.mean()) / one.std().clamp(min=1e-30) if len(one) > 1 else one for one in layers]
        for site, layers in _squared_weights(streams, variances).items()
    }
    return node_scores(aggregate(scores, shapes, lambda neurons: neurons.mean(-1)))


def by_block_influence(streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches) -> NodeScores:
    """Score all nodes of a layer by how far the layer turns the hidden state: 1 - mean cosine of its input and output.

    ShortGPT, Men et al. 2024 (arXiv 2403.03853, eq. 1): layers leave whole, in the order of their influence.
    """
    frozen = streams.frozen
    sums = torch.zeros(len(frozen.layers) + 1, dtype=torch.float64, device=frozen.device)
    for micro_batch in micro_batches.iterate(examples, full=False, phase="block influence"):
        micro_batches.ranks.stop_if_requested()
        batch = micro_batch.batch
        real = torch.ones_like(batch.clean) if batch.attention_mask is None else batch.attention_mask

        def add(
            index: int, before: Tensor, after: Tensor, real: Tensor = real, counts: bool = micro_batch.is_counted
        ) -> None:
            turned = 1 - torch.cosine_similarity(before.double(), after.double(), dim=-1).reshape(real.shape)
            sums[index] += (turned * real).sum() * counts

        with _watching_layers(frozen, add):
            streams.reference(batch)
        sums[-1] += real.sum() * micro_batch.is_counted
    micro_batches.ranks.all_reduce([sums])
    influence = (sums[:-1] / sums[-1]).tolist()
    return node_scores({
        name: [
            torch.full((GRANULARITIES[name].width(shape),), value)
            for shape, value in zip(frozen.shapes, influence, strict=True)
        ]
        for name in granularities_of(frozen.shapes)
    })  # fmt: skip


@contextmanager
def _watching_layers(frozen: FrozenModel, watch: Callable[[int, Tensor, Tensor], None]) -> Iterator[None]:
    """Call `watch` with index, input and output [R, T, D] of every layer of the passes inside the context."""

    def hook(index: int, _: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        watch(index, args[0] if args else kwargs["hidden_states"], hidden_of(output))

    with ExitStack() as undo:
        for index, layer in enumerate(frozen.layers):
            handle = layer.module.register_forward_hook(partial(hook, index), with_kwargs=True)
            undo.callback(handle.remove)
        yield
