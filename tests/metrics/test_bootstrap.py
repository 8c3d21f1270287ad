"""Intervals and attributions against closed forms."""

import numpy as np
import pytest
import torch
from scipy import stats

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.attribution.mask_gradients import integrated_gradients, rank_scores
from bigcircuit.data.collate import collate
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.bootstrap import intervals
from bigcircuit.metrics.logit_metrics import kl_divergence
from bigcircuit.model.granularity import SITE_WIDTH
from tests.model.test_architectures import SMALL, build, examples


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


def test_integrated_gradients_sum_to_the_change_of_the_loss():
    """Completeness (Sundararajan et al. 2017, proposition 1)."""
    frozen = build("llama", SMALL)
    chosen = examples(3)
    batch = collate(chosen, full=False)
    with Streams(frozen, INTERCHANGE) as streams:
        scores = integrated_gradients(streams, chosen, MicroBatches(2), points=60)
        closed = [{s: torch.zeros(1, 1, w(shape)) for s, w in SITE_WIDTH.items()} for shape in frozen.shapes]
        with torch.no_grad():
            logits = streams.masked(batch, lambda i: closed[i], 1)
            kl = kl_divergence(streams.reference(batch), logits, batch).mean().item()
    total = sum(row.sum().item() for rows in scores.values() for row in rows)
    assert total == pytest.approx(kl, rel=0.02)
    ranks = rank_scores(scores)
    flat = torch.cat([row for rows in scores.values() for row in rows])
    order = torch.cat([row for rows in ranks.values() for row in rows])
    assert (order.min().item(), order.max().item()) == (-1.0, 1.0)
    assert torch.equal(flat.argsort(), order.argsort())
