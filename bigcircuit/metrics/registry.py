"""Scores of circuits: the one table of their names, headings, units and directions."""

from dataclasses import dataclass

SCORES = {
    "kl": "KL",
    "cross_entropy": "CE",
    "logit_difference": "logit diff",
    "recovered": "recov.",
    "probability_difference": "prob diff",
    "accuracy": "acc.",
    "exact_match": "match",
}
"""Name of a score -> heading. KL(full model || circuit) and the cross-entropy of the right answers are in nats; `recovered`
is the share of the logit difference that a circuit recovers, (m(C) - m(empty)) / (m(full) - m(empty)) with m its mean, so 0 for
the empty circuit under the same ablation and 1 for the full model; null where these two are the same. `exact_match` is the share
of pairs with the full model's predictions."""
LOW_IS_GOOD = ("kl", "cross_entropy")


@dataclass(frozen=True)
class Score:
    """One score over the pairs of a split. Tails are those of single pairs; null for `recovered`, a ratio of means."""

    mean: float
    low: float
    """Lower end of the 95% bootstrap interval of the mean over pairs."""
    high: float
    min: float | None
    p5: float | None
    """5% of the pairs are below it: the bad tail where high is good."""
    p95: float | None
    """5% of the pairs are above it: the bad tail where low is good."""
    max: float | None


Scores = dict[str, Score]
