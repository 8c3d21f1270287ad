"""Bootstrap intervals against closed forms and scipy."""

import numpy as np
import pytest
from scipy import stats

from bigcircuit.metrics.bootstrap import intervals


def test_interval_is_that_of_the_normal_for_many_examples():
    column = np.random.default_rng(1).normal(3.0, 2.0, 2000)
    found = interval_of(column)
    error = column.std() / np.sqrt(2000)
    assert found[0] == pytest.approx(column.mean())
    assert found[1] == pytest.approx(column.mean() - 1.96 * error, abs=0.3 * error)
    assert found[2] == pytest.approx(column.mean() + 1.96 * error, abs=0.3 * error)
    assert interval_of(column) == found


def test_interval_of_equal_values_and_of_one():
    assert interval_of(np.ones(50)) == (1.0, 1.0, 1.0)
    assert interval_of(np.array([2.0])) == (2.0, 2.0, 2.0)


def test_intervals_are_those_of_scipy_for_any_function_of_means(monkeypatch):
    rng = np.random.default_rng(2)
    values = np.stack([rng.gamma(2.0, 1.0, 80), rng.normal(5.0, 1.0, 80)])
    found = intervals(values, lambda means: means[..., :1] / means[..., 1:])
    expected = stats.bootstrap(
        list(values), lambda a, b, axis: a.mean(axis) / b.mean(axis), paired=True, vectorized=True, n_resamples=1000,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    assert (found.low[0], found.high[0]) == pytest.approx(tuple(expected), rel=1e-12)
    monkeypatch.setattr("bigcircuit.metrics.bootstrap._AT_ONCE", 7 * 80)
    assert intervals(values).low == pytest.approx([intervals(row[None]).low[0] for row in values])
    apart = intervals(values, lambda means: means[..., :1] / means[..., 1:])
    assert (apart.low[0], apart.high[0]) == pytest.approx((found.low[0], found.high[0]), rel=1e-12), (
        "pieces change nothing"
    )


def interval_of(column):
    return tuple(float(part[0]) for part in intervals(column[None]))
