"""Scores of circuits: the one table of what is measured, how it is computed and how it is shown.

A new score is one entry of SCORES: training, evaluation, terminal, pages and files take all that they need from it. The module
is plain data and loads no torch, so that any file may import it.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from torch import Tensor

Tail = Literal["min", "p5", "p95", "max"]


@dataclass(frozen=True, kw_only=True)
class ScoreKind:
    """One score: how it is computed and how it is shown. One of `compute`, `share_of` and `exp_of` is given."""

    short: str
    """Heading on the terminal, where columns are narrow."""
    long: str
    """Heading on pages and in documents, without the unit."""
    description: str
    """What is measured, as a noun phrase."""
    unit: str = ""
    lower_is_better: bool = False
    compute: Callable[[Any], "Tensor"] | None = None
    """Score single pairs: a `LogitComparison` (metrics/logit_metrics.py) of P circuits on B examples -> [P, B]."""
    share_of: str = ""
    """Score m of whose mean this score is the share that a circuit recovers, (m(circuit) - m(empty)) / (m(full) - m(empty)):
    0 for the empty circuit under the same ablation, 1 for the full model, null where these two are the same."""
    exp_of: str = ""
    """Score of whose mean, and the ends of whose interval, this score is the exponential."""
    on: tuple[Literal["pairs", "text"], ...] = ("pairs",)
    """What has the score: pairs, windows of general text, or both."""
    tails: tuple[Tail, ...] = ()
    """Bad ends of the distribution over pairs that pages show below the mean, the milder one first."""
    headline: str = ""
    """Format of the mean in headlines and in the table of circuits on tasks; empty for a score that is not shown there."""
    in_brief: bool = True
    """Whether lists of circuits show it: the closing table of a run, trials.csv, the tables of circuits and trials on pages."""
    in_narrow: bool = False
    """Whether the table of an evaluation shows it in a terminal too narrow for all scores."""
    page_rank: int = 100
    """Place among the columns of pages: those with lower ranks are further left, equal ones in the order of the table."""

    def __post_init__(self) -> None:
        for name in ("short", "long", "description"):
            if not getattr(self, name).strip():
                raise ValueError(f"a score needs a {name}: nothing is shown without a heading")
        if (self.compute is not None) + bool(self.share_of) + bool(self.exp_of) != 1:
            raise ValueError(f"{self.long}: give one of compute, share_of and exp_of")
        if not set(self.tails) <= set(get_args(Tail)) or (self.tails and self.compute is None):
            raise ValueError(f"{self.long}: tails are some of {', '.join(get_args(Tail))}, of scores of single pairs")

    @property
    def heading(self) -> str:
        """Heading on pages, with the unit."""
        return f"{self.long}, {self.unit}" if self.unit else self.long


SCORES: dict[str, ScoreKind] = {
    "kl": ScoreKind(
        short="KL",
        long="KL",
        unit="nats",
        description="divergence KL(full model || circuit) of the next-token distributions, mean over the answer's tokens, or over "
        "those of a text",
        lower_is_better=True,
        compute=lambda compared: compared.kl,
        on=("pairs", "text"),
        tails=("p95", "max"),
        headline=".3f",
        in_narrow=True,
        page_rank=0,
    ),
    "cross_entropy": ScoreKind(
        short="CE",
        long="cross-entropy",
        unit="nats",
        description="negative log of the probability of all right answers together, or of a text, by token",
        lower_is_better=True,
        compute=lambda compared: compared.cross_entropy,
        on=("pairs", "text"),
        in_brief=False,
        page_rank=6,
    ),
    "log_likelihood": ScoreKind(
        short="log lik.",
        long="log-likelihood",
        unit="nats",
        description="log of the probability of a text, by token",
        compute=lambda compared: compared.preference,
        on=("text",),
        in_brief=False,
        page_rank=7,
    ),
    "recovered_likelihood": ScoreKind(
        short="recov. lik.",
        long="recovered likelihood",
        description="share of the full model's log-likelihood of a text, counted from that of the empty circuit",
        share_of="log_likelihood",
        on=("text",),
        in_narrow=True,
        page_rank=4,
    ),
    "perplexity": ScoreKind(
        short="perplexity",
        long="perplexity",
        description="exponential of the mean cross-entropy of a text by token, interval over documents",
        lower_is_better=True,
        exp_of="cross_entropy",
        on=("text",),
        in_narrow=True,
        headline=".3f",
        page_rank=1,
    ),
    "agreement": ScoreKind(
        short="agree",
        long="agreement",
        description="share of the tokens of a text for which the likeliest token is that of the full model",
        compute=lambda compared: compared.agreement,
        on=("text",),
        headline=".0%",
        in_narrow=True,
        page_rank=2,
    ),
    "logit_difference": ScoreKind(
        short="logit diff",
        long="logit difference",
        description="log of the probability of the right answers over that of the wrong ones; of single tokens, the difference "
        "of their logits",
        compute=lambda logits: logits.contrast.logit_difference,
        tails=("p5", "min"),
        in_narrow=True,
        page_rank=3,
    ),
    "recovered": ScoreKind(
        short="recov.",
        long="recovered",
        description="share of the full model's mean logit difference, counted from that of the empty circuit",
        share_of="logit_difference",
        in_narrow=True,
        page_rank=4,
    ),
    "probability_difference": ScoreKind(
        short="prob diff",
        long="probability difference",
        description="probability of the right answers minus that of the wrong ones",
        compute=lambda logits: logits.contrast.probability_difference,
        tails=("p5", "min"),
        in_brief=False,
        page_rank=5,
    ),
    "accuracy": ScoreKind(
        short="acc.",
        long="accuracy",
        description="share of pairs on which the right answers are more probable than the wrong ones",
        compute=lambda logits: (logits.contrast.logit_difference > 0).float(),
        page_rank=2,
    ),
    "exact_match": ScoreKind(
        short="match",
        long="exact match",
        description="share of pairs on which the likeliest tokens are those of the full model",
        compute=lambda logits: logits.exact_match.float(),
        headline=".0%",
        in_narrow=True,
        page_rank=1,
    ),
}
"""Name of a score, as in all files -> its entry. Files and terminal keep this order; in files shares come after the scores that
single pairs have."""


def example_scores(on: Literal["pairs", "text"] = "pairs") -> dict[str, ScoreKind]:
    """The scores that single pairs, or windows of text, have, in the order of files."""
    return {name: kind for name, kind in SCORES.items() if kind.compute is not None and on in kind.on}


def preference_of(scores: Collection[str]) -> str:
    """Name the score, of those that there are, that a needed node raises: the logit difference, or the text's log-likelihood."""
    return "log_likelihood" if "log_likelihood" in scores else "logit_difference"


def match_of(scores: Collection[str]) -> str:
    """Name the score, of those that there are, that counts the same likeliest tokens."""
    return "agreement" if "agreement" in scores else "exact_match"


def is_on_text(scores: Collection[str]) -> bool:
    """Whether scores, by name, are of general text."""
    return "perplexity" in scores


def unit_of(scores: Collection[str]) -> str:
    """Name what scores, by name, are of, in the plural."""
    return "tokens" if is_on_text(scores) else "pairs"


def recovered_of(scores: Collection[str]) -> str:
    """Name the score, of those that there are, that is the share recovered of `preference_of`."""
    return "recovered_likelihood" if "recovered_likelihood" in scores else "recovered"


def page_scores() -> dict[str, ScoreKind]:
    """All scores in the order of the columns of pages."""
    return dict(sorted(SCORES.items(), key=lambda item: item[1].page_rank))


@dataclass(frozen=True)
class Score:
    """One score over the pairs of a split. Tails are those of single pairs; null for shares, which are ratios of means."""

    mean: float
    low: float
    """Lower end of the 95% bootstrap interval of the mean over pairs."""
    high: float
    """Upper end."""
    min: float | None
    p5: float | None
    """5% of the pairs are below it: the bad tail where high is good."""
    p95: float | None
    """5% of the pairs are above it: the bad tail where low is good."""
    max: float | None


Scores = dict[str, Score]
"""Name of a score -> its value."""
