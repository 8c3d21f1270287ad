"""Means over examples with bootstrap intervals."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

_RESAMPLES = 1000
_AT_ONCE = 10_000_000
"""Resampled values in memory at once."""


class Estimate(NamedTuple):
    """A statistic with its 95% percentile bootstrap interval (Efron 1979) over examples."""

    mean: float
    low: float
    high: float


class Intervals(NamedTuple):
    """Several estimates, each float64 [K]."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def intervals(columns: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]) -> Intervals:
    """Estimates of `statistic(*columns, axis)` for K rows; columns [K, N], the N examples are resampled from a fixed seed.

    All rows and columns see the same resampled examples.
    """
    value = np.asarray(statistic(*columns, axis=-1), dtype=float)
    if columns[0].shape[-1] < 2:
        return Intervals(value, value, value)
    drawn = stats.bootstrap(
        columns, statistic, paired=True, vectorized=True, n_resamples=_RESAMPLES, method="percentile",
        axis=-1, batch=max(1, _AT_ONCE // columns[0].size), rng=np.random.default_rng(0),
    )  # fmt: skip
    return Intervals(value, drawn.confidence_interval.low, drawn.confidence_interval.high)


def estimate(columns: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]) -> Estimate:
    """Estimate `statistic(*columns, axis)`; columns [N] of the same examples are resampled together, from a fixed seed."""
    found = intervals([column[None] for column in columns], statistic)
    return Estimate(*(float(values[0]) for values in found))
