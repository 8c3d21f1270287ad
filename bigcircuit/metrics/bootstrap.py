"""Bootstrap intervals of means over examples, and of functions of such means.

Shapes: K rows, N examples, R resamplings, M statistics.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

_RESAMPLINGS = 1000
_AT_ONCE = 10_000_000
"""Most resampled examples in memory at once."""


class Intervals(NamedTuple):
    """Estimates with 95% percentile bootstrap intervals (Efron 1979) over examples, float64 [M] each."""

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def intervals(values: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray] = lambda means: means) -> Intervals:
    """Estimate a function of the means of K rows, values [K, N], with intervals; by default the means themselves.

    statistic: means [..., K] -> [..., M]. All rows see the same resampled examples, and so do all calls with the same N.
    """
    value = statistic(values.mean(-1))
    low, high = np.quantile(statistic(_resampled(values)), (0.025, 0.975), axis=0)
    return Intervals(value, low, high)


def _resampled(values: np.ndarray) -> np.ndarray:
    """Average the rows over R resamplings of the N examples with replacement; returns [R, K]."""
    count, rng = values.shape[-1], np.random.default_rng(0)
    chunk = max(1, _AT_ONCE // count)
    means = []
    for start in range(0, _RESAMPLINGS, chunk):
        rows = min(chunk, _RESAMPLINGS - start)
        drawn = rng.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)
        means.append(times @ values.T / count)
    return np.concatenate(means)
