"""Faithfulness terms and scores, as pure functions of logits at the scored positions.

Shapes: P circuits, B examples, S scored positions, C continuations, K continuation tokens, V vocabulary (see data/collate.py).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from bigcircuit.data.collate import Batch


@dataclass(frozen=True)
class LogitComparison:
    """Logits of P circuits beside those of the full model at the scored positions: what `SCORES` compute scores of pairs from."""

    reference: Tensor
    """[S, V], of the full model."""
    logits: Tensor
    """[P, S, V]"""
    batch: Batch

    @property
    def kl(self) -> Tensor:
        """KL(full model || circuit) in nats, float32 [P, B]."""
        return kl_divergence(self.reference, self.logits, self.batch)

    @cached_property
    def contrast(self) -> "Contrast":
        """Right against wrong answers; computed once for all scores that need it."""
        return contrast(self.logits, self.batch)

    @property
    def cross_entropy(self) -> Tensor:
        """Negative log of the probability of all right answers together, nats, float32 [P, B]."""
        return self.contrast.cross_entropy

    @property
    def preference(self) -> Tensor:
        """Logit difference: what ablating a needed node lowers, float32 [P, B]."""
        return self.contrast.logit_difference

    @property
    def exact_match(self) -> Tensor:
        """Whether circuit and full model predict the same tokens, bool [P, B]."""
        return exact_match(self.reference, self.logits, self.batch)

    def mean_over_answer(self, values: Tensor) -> Tensor:
        """Mean over the answer positions of each example; values [P, S] -> [P, B]."""
        return _mean_over_answer(values, self.batch)


def kl_divergence(reference: Tensor, logits: Tensor, batch: Batch) -> Tensor:
    """Compute KL(reference || circuit) in nats, mean over the answer positions of an example.

    reference [S, V], logits [P, S, V]. Returns float32 [P, B].
    """
    expected = reference.float().log_softmax(-1)
    found = logits.float().log_softmax(-1)
    return _mean_over_answer((expected.exp() * (expected - found)).sum(-1), batch)


def continuation_log_probability(logits: Tensor, batch: Batch) -> Tensor:
    """Sum log p over the tokens of every continuation; logits [P, S, V] -> float32 [P, C]."""
    log_p = logits.float().log_softmax(-1)[:, batch.token_score, batch.token_id]
    return _sum_by(log_p, batch.continuation_of_token, len(batch.correct))


class Contrast(NamedTuple):
    """Right against wrong answers, float32 [P, B] each."""

    logit_difference: Tensor
    """log p(any right answer) - log p(any wrong answer); for single-token answers the difference of their logits."""
    probability_difference: Tensor
    """p(any right answer) - p(any wrong answer)."""
    cross_entropy: Tensor
    """- log p(any right answer), nats."""


def contrast(logits: Tensor, batch: Batch) -> Contrast:
    """Compare right and wrong continuations; logits [P, S, V]."""
    # The last bit of an exponential depends on where in a tensor the number is, so on which circuits are scored together.
    log_p = continuation_log_probability(logits, batch).double()
    right = _log_sum_by(log_p[:, batch.correct], batch.example_of_continuation[batch.correct], len(batch.ids))
    wrong = _log_sum_by(log_p[:, ~batch.correct], batch.example_of_continuation[~batch.correct], len(batch.ids))
    return Contrast((right - wrong).float(), (right.exp() - wrong.exp()).float(), -right.float())


def exact_match(reference: Tensor, logits: Tensor, batch: Batch) -> Tensor:
    """Test whether circuit and full model predict the same token at every answer position.

    reference [S, V], logits [P, S, V]. Returns bool [P, B].
    """
    differs = (reference.argmax(-1) != logits.argmax(-1)) & (batch.kl_weight > 0)
    return _sum_by(differs.float(), batch.example_of_score, len(batch.ids)) == 0


def _mean_over_answer(values: Tensor, batch: Batch) -> Tensor:
    return _sum_by(values * batch.kl_weight, batch.example_of_score, len(batch.ids))


def _sum_by(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """Sum [P, X] over the items of each owner -> [P, count]."""
    return values.new_zeros(len(values), count).index_add(1, owner, values)


def _log_sum_by(values: Tensor, owner: Tensor, count: int) -> Tensor:
    """log of the sum of exp of [P, X] over the items of each owner -> [P, count], stable."""
    index = owner.expand(len(values), -1)
    highest = values.new_full((len(values), count), -float("inf")).scatter_reduce(1, index, values.detach(), "amax")
    return _sum_by((values - highest.gather(1, index)).exp(), owner, count).log() + highest
