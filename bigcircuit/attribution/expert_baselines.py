"""Rankings of the experts of a mixture by what the router sends them; independent of the ablation.

Shapes: E experts of a layer.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from bigcircuit.attribution.activations import watch_clean
from bigcircuit.attribution.mask_gradients import zeros
from bigcircuit.attribution.node_scores import NodeScores, node_scores
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.forward.experts import Added
from bigcircuit.forward.streams import Streams
from bigcircuit.model.granularity import EXPERT, LEAVES


class _Traffic(NamedTuple):
    """Sums over the tokens of the clean prompts, float64."""

    tokens: Tensor
    """[1], all tokens."""
    routed: list[Tensor]
    """[E] a layer, tokens routed to an expert."""
    written: list[Tensor]
    """[E] a layer, norms of routing weight x output."""


def by_expert_saliency(streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches) -> NodeScores:
    """Score experts by the mean, over the tokens routed to one, of routing weight x norm of its output; 0 without tokens.

    REAP, Lasby et al. 2025 (arXiv 2510.13999, eq. 9).
    """
    found = _traffic(streams, examples, micro_batches, "expert saliency")
    means = [norms / counts.clamp(min=1) for norms, counts in zip(found.written, found.routed, strict=True)]
    return node_scores({LEAVES[EXPERT]: means})


def by_router_frequency(streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches) -> NodeScores:
    """Score experts by the share of tokens that the router sends to one."""
    found = _traffic(streams, examples, micro_batches, "router frequency")
    return node_scores({LEAVES[EXPERT]: [counts / found.tokens for counts in found.routed]})


def _traffic(streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches, phase: str) -> _Traffic:
    routed, written = zeros(streams, LEAVES[EXPERT]), zeros(streams, LEAVES[EXPERT])

    def add(index: int, found: Added) -> None:
        count = len(routed[index])
        routed[index] += found.routed(count).double().sum(0)
        written[index] += found.norms(count).double().sum(0)

    tokens = watch_clean(streams, examples, micro_batches, lambda *_: None, add, phase)
    micro_batches.ranks.all_reduce([tokens, *routed, *written])
    return _Traffic(tokens, routed, written)
