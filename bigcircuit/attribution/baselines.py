"""Baselines for learned masks: node scores by other methods, on the same nodes, pairs and ablation.

Each method scores the nodes of every granularity. The gradient score of a coarse node is the sum of the signed scores of its
neurons, because that is exactly the gradient with respect to a gate above these neurons. `mlp_output` is scored where
that needs no path of its own and the ablation says what a closed output is: a circuit file has constants of gated sites only.

KL(reference || circuit) has no gradient at the full model, where KL is smallest: methods that take gradients only there use the
logit difference or the cross-entropy of the right answers; on general text the log-likelihood of its tokens stands for both.

One more baseline is one more entry of BASELINES.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.attribution.expert_baselines import by_expert_saliency, by_router_frequency
from bigcircuit.attribution.mask_gradients import Measure, integrated_gradients, mask_gradients, zeros
from bigcircuit.attribution.node_scores import NodeScores, aggregate, level_size, node_scores
from bigcircuit.attribution.pruning_scores import (
    by_activation_magnitude,
    by_block_influence,
    by_fluctuation,
    by_weight_magnitude,
)
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.forward.streams import Streams
from bigcircuit.model.granularity import (
    EVERYWHERE,
    EXPERT,
    EXPERT_NEURON,
    GRANULARITIES,
    LEAVES,
    MLP_OUTPUT,
    NODE_NAMES,
    LayerShape,
    granularities_of,
    has_masks,
    sites_of,
)


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
    return _gradients_at_full(streams, examples, micro_batches, lambda compared: compared.preference, lambda each: each)


def by_head_importance(streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches) -> NodeScores:
    """Score nodes by the mean over examples of |d loss / d mask| at the full model, loss = cross-entropy of the right answers.

    HISP, Michel et al. 2019 (arXiv 1905.10650, eq. 2), for nodes of every kind and with the ablation's baseline.
    """
    return _gradients_at_full(streams, examples, micro_batches, lambda compared: compared.cross_entropy, torch.abs)


def _gradients_at_full(
    streams: Streams,
    examples: Sequence[Example],
    micro_batches: MicroBatches,
    measure: Measure,
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


def by_taylor(streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches) -> NodeScores:
    """Score nodes by the sum over their neurons of |d loss / d mask|, of the loss on all examples together.

    LLM-Pruner, Ma et al. 2023 (arXiv 2305.11627, section 3.2, first order, by vector): |sum over weights of gradient x weight|,
    which for the weights behind a neuron is the gradient of its mask. The loss is the cross-entropy of the right answers or of the
    text, and what a closed node outputs is the ablation's.
    """
    shapes = streams.frozen.shapes
    scored = sites_of(shapes, (LEAVES[MLP_OUTPUT],))
    sites = [site for site in scored if streams.ablation.covers(site)]
    total = {site: zeros(streams, LEAVES[site]) for site in sites}
    found = mask_gradients(
        streams, examples, micro_batches, lambda compared: compared.cross_entropy, [1.0], sites, phase="Taylor scores"
    )
    for micro_batch, gradients in found:
        for site, layers in gradients.items():
            for sums, gradient in zip(total[site], layers, strict=True):
                sums += gradient.double().sum(0) * micro_batch.is_counted / len(examples)
    micro_batches.ranks.all_reduce([sums for layers in total.values() for sums in layers])
    sizes = {site: [sums.abs() for sums in layers] for site, layers in total.items()}
    return node_scores(aggregate(sizes, shapes, lambda neurons: neurons.sum(-1)))


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
    scores_experts: bool = True
    """Whether it is defined for experts."""

    def refusal(self, shapes: Sequence[LayerShape]) -> str:
        """Why it cannot rank the nodes of a model; empty where it can."""
        if self.only and not level_size(self.only, shapes):
            return f"ranks {NODE_NAMES[self.only]}, of which the model has none"
        if not self.scores_experts and level_size(EXPERT, shapes):
            return "is not defined for experts, which the model has"
        return ""

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
    "weight_magnitude": Baseline(
        label="weight magnitude",
        description="norm of the weights by which a node writes, without data",
        score=by_weight_magnitude,
        scores_experts=False,
    ),
    "taylor": Baseline(
        label="first-order Taylor",
        description="absolute gradient of the cross-entropy with respect to neurons' masks, of all examples together (LLM-Pruner)",
        score=by_taylor,
    ),
    "fluctuation": Baseline(
        label="fluctuation",
        description="variance of a neuron's activation times its squared weights, standardised by layer (FLAP)",
        score=by_fluctuation,
        scores_experts=False,
    ),
    "block_influence": Baseline(
        label="block influence",
        description="how far a whole layer turns the hidden state (ShortGPT)",
        score=by_block_influence,
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
