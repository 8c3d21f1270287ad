"""Means over examples with bootstrap intervals."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

_RESAMPLES = 1000


class Estimate(NamedTuple):
    """A statistic with its 95% percentile bootstrap interval (Efron 1979) over examples."""

    mean: float
    low: float
    high: float


def estimate(columns: Sequence[np.ndarray], statistic: Callable[..., np.ndarray]) -> Estimate:
    """Estimate `statistic(*columns, axis)`; columns [N] of the same examples are resampled together, from a fixed seed."""
    value = float(statistic(*columns, axis=-1))
    if len(columns[0]) < 2:
        return Estimate(value, value, value)
    drawn = stats.bootstrap(
        columns, statistic, paired=True, vectorized=True, n_resamples=_RESAMPLES, method="percentile", rng=np.random.default_rng(0)
    )  # fmt: skip
    return Estimate(value, float(drawn.confidence_interval.low), float(drawn.confidence_interval.high))
