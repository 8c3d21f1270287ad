"""Baselines for learned masks: node scores by other methods, on the same nodes, pairs and ablation.

Each method scores the nodes of every granularity. The gradient score of a coarse node is the sum of the signed scores of its
neurons, because that is exactly the gradient with respect to a gate above these neurons. `mlp_output` is scored where
that needs no path of its own and the ablation says what a closed output is: a circuit file has constants of gated sites only.

KL(reference || circuit) has no gradient at the full model, where KL is smallest: methods that take gradients only there use the
logit difference or the cross-entropy of the right answers.

One more baseline is one more entry of BASELINES.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from bigcircuit.attribution.activations import watch_clean
from bigcircuit.attribution.expert_baselines import by_expert_saliency, by_router_frequency
from bigcircuit.attribution.mask_gradients import integrated_gradients, mask_gradients, zeros
from bigcircuit.attribution.node_scores import NodeScores, aggregate, level_size, node_scores
from bigcircuit.data.collate import Batch
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.forward.experts import Added
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.logit_metrics import contrast
from bigcircuit.model.granularity import (
    EVERYWHERE,
    EXPERT,
    EXPERT_NEURON,
    GRANULARITIES,
    LEAVES,
    MLP,
    MLP_OUTPUT,
    LayerShape,
    granularities_of,
    has_masks,
    sites_of,
)
from bigcircuit.model.zero3 import gathered

_ROWS = 1024
"""Rows of the identity that pass a projection at once."""


def by_integrated_gradients(
    streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches, points: int = 10
) -> NodeScores:
    """Score nodes by the nats of KL that opening them removes on the path from the empty circuit to the full model.

    points: number of midpoints of the path. `mlp_output` is not scored.
    """
    found = integrated_gradients(streams, examples, micro_batches, points=points)
    return node_scores(aggregate(found, streams.frozen.shapes, lambda neurons: neurons.sum(-1)))


def by_attribution_patching(streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches) -> NodeScores:
    """Score nodes by a first-order estimate of how much the logit difference falls when a node of the full model is ablated.

    Nanda 2023 (Attribution Patching), Syed et al. 2023 (arXiv 2310.10348, eq. 1), with the gradient on the clean prompt.
    """
    return _gradients_at_full(
        streams, examples, micro_batches, lambda *a: _contrast(*a).logit_difference, lambda each: each
    )


def by_head_importance(streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches) -> NodeScores:
    """Score nodes by the mean over examples of |d loss / d mask| at the full model, loss = cross-entropy of the right answers.

    HISP, Michel et al. 2019 (arXiv 1905.10650, eq. 2), for nodes of every kind and with the ablation's baseline.
    """
    return _gradients_at_full(streams, examples, micro_batches, lambda *a: _contrast(*a).cross_entropy, torch.abs)


def _contrast(_: Tensor, logits: Tensor, batch: Batch):
    return contrast(logits, batch)


def _gradients_at_full(
    streams: Streams,
    examples: Sequence[Example],
    micro_batches: MicroBatches,
    measure: Callable[[Tensor, Tensor, Batch], Tensor],
    each: Callable[[Tensor], Tensor],
) -> NodeScores:
    """Average a function of each node's gradient over examples.

    measure: as for `mask_gradients`; each: function of the gradients of one granularity, [B, n] -> [B, n].
    """
    scored = sites_of(streams.frozen.shapes, (LEAVES[MLP_OUTPUT],))
    sites = [site for site in scored if streams.ablation.covers(site)]
    total = {name: zeros(streams, name) for name in _closable(streams)}
    phase = "gradients at the full model"
    for micro_batch, gradients in mask_gradients(streams, examples, micro_batches, measure, [1.0], sites, phase=phase):
        nodes = aggregate(gradients, streams.frozen.shapes, lambda neurons: neurons.double().sum(-1))
        for name, layers in nodes.items():
            for sums, gradient in zip(total[name], layers, strict=True):
                sums += each(gradient).sum(0) * micro_batch.is_counted / len(examples)
    micro_batches.ranks.all_reduce([sums for layers in total.values() for sums in layers])
    return node_scores(total)


def _closable(streams: Streams) -> list[str]:
    """List the granularities of the model whose nodes the ablation can close, but for neurons of experts."""
    names = [name for name in GRANULARITIES if name != LEAVES[EXPERT_NEURON]]
    sites = {site for site in GRANULARITIES["block"].sites if has_masks(site, names) and streams.ablation.covers(site)}
    return [name for name in granularities_of(streams.frozen.shapes, names) if sites & {*GRANULARITIES[name].sites}]


def by_activation_magnitude(streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches) -> NodeScores:
    """Score nodes by the size of what they write: Frobenius norm over a node's weights of |weight| x RMS of the weight's input.

    The score of a weight is that of Wanda (Sun et al. 2023, arXiv 2306.11695, eq. 1) up to the number of tokens, which are those
    of the clean prompts; for a neuron this is the RMS of its activation times the norm of its column. Independent of the ablation.
    """
    squares = _mean_squares(streams, examples, micro_batches)
    written: dict[str, list[Tensor]] = {site: [] for site in (*squares, MLP_OUTPUT)}
    for index, layer in enumerate(streams.frozen.layers):
        for site, layers in squares.items():
            by_neuron, by_output = layers[index], layers[index][:0]
            if site in layer.sites and site != EXPERT:  # what experts add is measured behind their weights
                by_neuron, by_output = _written(streams, layer.sites[site], layers[index])
            written[site].append(by_neuron)
            if site == MLP:
                written[MLP_OUTPUT].append(by_output)
    return node_scores(aggregate(written, streams.frozen.shapes, lambda neurons: neurons.sum(-1).sqrt()))


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


def by_chance(streams: Streams, _: Sequence[Example], __: MicroBatches, *, seed: int = 0) -> NodeScores:
    """Draw uniform scores, independently for each granularity."""
    generator = torch.Generator().manual_seed(seed)
    return node_scores({
        name: [torch.rand(granularity.width(shape), generator=generator) for shape in streams.frozen.shapes]
        for name, granularity in GRANULARITIES.items()
        if name in _closable(streams) or name in EVERYWHERE
    })  # fmt: skip


class Baseline(NamedTuple):
    """A method that scores nodes without training masks."""

    label: str
    """Name in legends and tables."""
    description: str
    """One line for help texts."""
    score: Callable[..., NodeScores]
    """(streams, examples, micro_batches) -> scores under the ablation of the streams. Every rank calls this function and gets all
    scores. Random scores take the keyword `seed` as well."""
    is_random: bool = False
    """Whether the scores are drawn at random, so that results are means over several draws."""
    only: str = ""
    """The one granularity whose nodes it scores; empty where it scores all."""

    def applies(self, shapes: Sequence[LayerShape]) -> bool:
        """Whether a model has nodes that it scores."""
        return not self.only or bool(level_size(self.only, shapes))

    def draw(
        self, streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches, draws: int
    ) -> list[NodeScores]:
        """Score the nodes once, or once for each of the seeds 0 to draws - 1 if the scores are random.

        Nodes that the ablation cannot close have no scores: circuits of the best of them could not be run.
        """
        seeds = [{"seed": seed} for seed in range(draws)] if self.is_random else [{}]
        closable = set(_closable(streams))
        return [
            {name: values for name, values in scores.items() if name in closable}
            for scores in (self.score(streams, examples, micro_batches, **seed) for seed in seeds)
        ]


BASELINES: dict[str, Baseline] = {
    "integrated_gradients": Baseline(
        label="integrated gradients",
        description="KL that opening a node removes on the way from the empty circuit to the full model",
        score=by_integrated_gradients,
    ),
    "attribution_patching": Baseline(
        label="attribution patching",
        description="first-order estimate of the logit difference that ablating a node costs the full model",
        score=by_attribution_patching,
    ),
    "head_importance": Baseline(
        label="head importance",
        description="mean absolute gradient of the cross-entropy with respect to a node's mask, at the full model",
        score=by_head_importance,
    ),
    "activation_magnitude": Baseline(
        label="activation magnitude",
        description="norm of a node's weights times the RMS of their inputs (Wanda)",
        score=by_activation_magnitude,
    ),
    "expert_saliency": Baseline(
        label="expert saliency",
        description="mean routing weight times norm of the output over the tokens routed to an expert (REAP)",
        score=by_expert_saliency,
        only=EXPERT,
    ),
    "router_frequency": Baseline(
        label="router frequency",
        description="share of tokens that the router sends to an expert",
        score=by_router_frequency,
        only=EXPERT,
    ),
    "random": Baseline(
        label="random order",
        description="uniform random scores, the mean of several draws",
        score=by_chance,
        is_random=True,
    ),
}
"""Name of a method, as in `--methods` and evaluation.json -> its entry."""

LEARNED_GATES = "learned"
"""The method that ranks nodes by the trained gates of a circuit: no baseline, since there is one ranking a circuit."""

METHOD_LABELS = {LEARNED_GATES: "learned gates", **{name: baseline.label for name, baseline in BASELINES.items()}}
"""Name of a ranking method -> its label, learned gates first."""
