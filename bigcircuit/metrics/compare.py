"""Compare circuits with the full model where a pass ends: on whole logits of pairs, or on windows of text chunk by chunk.

Shapes: P circuits, B examples, S scored positions, C positions of a chunk, D width of the vocabulary projection's input,
V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from bigcircuit.data.collate import Batch
from bigcircuit.forward.corrupted import Corrupted
from bigcircuit.forward.head import logits_of
from bigcircuit.forward.pass_state import MaskSource
from bigcircuit.forward.shared_layers import Branches
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.logit_metrics import LogitComparison
from bigcircuit.model.sites import FrozenModel


class PassComparison(Protocol):
    """What losses, rankings and `SCORES` are computed from; other properties are those of the two kinds."""

    @property
    def kl(self) -> Tensor:
        """KL(full model || circuit) in nats, float32 [P, B]."""

    @property
    def cross_entropy(self) -> Tensor:
        """Negative log of the probability of the right answers, or of the text by token, nats, float32 [P, B]."""

    @property
    def preference(self) -> Tensor:
        """What ablating a needed node lowers: the logit difference, or the text's log-likelihood, float32 [P, B]."""


@dataclass(frozen=True)
class TextComparison:
    """P circuits beside the full model on windows of text, means over the scored tokens of a window, float32 [P, B] each."""

    kl: Tensor
    cross_entropy: Tensor
    """Of the text, nats a token."""
    agreement: Tensor
    """Share of tokens for which circuit and full model have the same likeliest token."""

    @property
    def preference(self) -> Tensor:
        """Log-likelihood of the text, nats a token, [P, B]."""
        return -self.cross_entropy


def compare_pass(
    streams: Streams,
    batch: Batch,
    masks: MaskSource,
    members: int,
    reference: Tensor,
    corrupted: Corrupted | None = None,
    branches: Branches | None = None,
) -> Any:
    """Run P = `members` circuits and compare them with the full model: a LogitComparison or, on windows, a TextComparison.

    reference: as `Streams.reference` gives it for this batch. corrupted, branches: see `Streams.masked`. The result has a graph.
    """
    return comparison_of(streams.frozen, batch, streams.masked(batch, masks, members, corrupted, branches), reference)


def comparison_of(frozen: FrozenModel, batch: Batch, found: Tensor, reference: Tensor) -> Any:
    """Compare what passes gave, [P, S, V or D], with the full model's, [S, V or D]; see `compare_pass`."""
    if batch.logit_chunk is None:
        return LogitComparison(reference, found, batch)
    size = max(1, batch.logit_chunk // len(found))
    terms = [
        _terms(frozen, part, expected, targets)
        for part, expected, targets in zip(
            found.split(size, 1), reference.split(size), batch.token_id.split(size), strict=True
        )
    ]
    return TextComparison(*(_mean(torch.cat(columns, 1), batch) for columns in zip(*terms, strict=True)))


def compare_logits(reference: Tensor, logits: Tensor, batch: Batch) -> TextComparison:
    """Compare logits of windows, which exist as a whole: of the full model [S, V] and of P circuits [P, S, V]."""
    terms = _token_terms(_log_probabilities(reference), _log_probabilities(logits), batch.token_id)
    return TextComparison(*(_mean(one, batch) for one in terms))


def _terms(frozen: FrozenModel, found: Tensor, reference: Tensor, targets: Tensor) -> Sequence[Tensor]:
    """Compute KL, cross-entropy and agreement of a chunk, [P, C] each; its logits are computed again in the backward pass."""

    def compute(found: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            expected = _log_probabilities(logits_of(frozen, reference))
        return _token_terms(expected, _log_probabilities(logits_of(frozen, found)), targets)

    if torch.is_grad_enabled() and found.requires_grad:
        return checkpoint(compute, found, use_reentrant=False, preserve_rng_state=False)
    return compute(found)


def _token_terms(expected: Tensor, found: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute KL, cross-entropy and agreement by position, [P, C] each, from log-probabilities [C, V] and [P, C, V]."""
    kl = (expected.exp() * (expected - found)).sum(-1)
    cross_entropy = -found.gather(-1, targets.expand(len(found), -1).unsqueeze(-1)).squeeze(-1)
    return kl, cross_entropy, (found.argmax(-1) == expected.argmax(-1)).to(kl.dtype)


def _log_probabilities(logits: Tensor) -> Tensor:
    """Compute log-probabilities of tokens in float32 at least."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)


def _mean(values: Tensor, batch: Batch) -> Tensor:
    """Average [P, S] over the scored tokens of each window, [P, B]."""
    weighted = values * batch.kl_weight
    return weighted.new_zeros(len(values), len(batch.ids)).index_add(1, batch.example_of_score, weighted)
