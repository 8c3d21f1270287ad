"""Scores of the caller's own, beside those of the table while an evaluation runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from bigcircuit.config.own_code import calling, find_function
from bigcircuit.data.collate import Batch
from bigcircuit.errors import UserError
from bigcircuit.metrics.logit_metrics import LogitComparison
from bigcircuit.metrics.registry import SCORES, ScoreKind

Metric = Callable[[Tensor, Batch], Tensor]
"""Function of the logits of one circuit at the scored positions, [S, V], and of the batch -> one number a pair, [B]."""


METRIC_ENTRY_POINTS = "bigcircuit.metrics"
"""Group of entry points in which packages declare metrics of their own."""
_OF_THE_TABLE = frozenset(SCORES)


def named_metrics(names: Sequence[str]) -> dict[str, Metric]:
    """Find metrics by `module:function` or the name of an entry point; the name of the function is that of the score.

    Raises UserError, also for two of one name.
    """
    found: dict[str, Metric] = {}
    for name in dict.fromkeys(names):
        short = name.rpartition(":")[2]
        if short in found:
            raise UserError(f"metrics {name}: another metric has the name {short}; rename the function")
        found[short] = find_function(name, METRIC_ENTRY_POINTS, "metrics")
    return found


@contextmanager
def own_scores(metrics: Mapping[str, Metric]) -> Iterator[None]:
    """Add metrics to the table of scores inside the context. Raises UserError for a name that is taken or none."""
    for name, metric in metrics.items():
        if name in SCORES or not name.isidentifier():
            raise UserError(
                f"metrics: {name!r} is a score already or no name; use a name of letters that no other score has"
            )
        if not callable(metric):
            raise UserError(f"metrics: {name} is of type {type(metric).__name__}; give a function of (logits, batch)")
    try:
        for name, metric in metrics.items():
            description = next(iter((metric.__doc__ or "").strip().splitlines()), "metric of the caller")
            SCORES[name] = ScoreKind(
                short=name, long=name, description=description, compute=_computed(name, metric), in_brief=False
            )
        yield
    finally:
        for name in metrics:
            SCORES.pop(name, None)


def own_names() -> list[str]:
    """Name the scores of the caller's own that are in the table now."""
    return [name for name in SCORES if name not in _OF_THE_TABLE]


def _computed(name: str, metric: Metric) -> Callable[[LogitComparison], Tensor]:
    def compute(compared: LogitComparison) -> Tensor:
        pairs = len(compared.batch.ids)
        with calling(f"metrics: {name}"):
            rows: list[Any] = [metric(logits, compared.batch) for logits in compared.logits]
        for row in rows:
            if not isinstance(row, Tensor) or tuple(row.shape) != (pairs,):
                found = list(row.shape) if isinstance(row, Tensor) else type(row).__name__
                raise UserError(
                    f"metrics: {name} returned {found} for {pairs} pairs; return a tensor of one number a pair"
                )
        return torch.stack(rows).float()

    return compute
