"""Intervals and attributions against closed forms."""

import numpy as np
import pytest
import torch

from bigcircuit.ablated import INTERCHANGE
from bigcircuit.evaluation.attribution import integrated_gradients, rank_scores
from bigcircuit.evaluation.bootstrap import estimate
from bigcircuit.gates.granularity import SITE_WIDTH
from bigcircuit.objective import kl_divergence
from bigcircuit.streams import Streams
from bigcircuit.tasks.batch import collate
from bigcircuit.tasks.passes import Passes
from tests.test_architectures import SMALL, build, examples


def test_interval_is_that_of_the_normal_for_many_examples():
    column = np.random.default_rng(1).normal(3.0, 2.0, 2000)
    found = estimate([column], np.mean)
    error = column.std() / np.sqrt(2000)
    assert found.mean == pytest.approx(column.mean())
    assert found.low == pytest.approx(column.mean() - 1.96 * error, abs=0.3 * error)
    assert found.high == pytest.approx(column.mean() + 1.96 * error, abs=0.3 * error)
    assert estimate([column], np.mean) == found


def test_interval_of_equal_values_and_of_one():
    assert estimate([np.ones(50)], np.mean) == (1.0, 1.0, 1.0)
    assert estimate([np.array([2.0])], np.mean) == (2.0, 2.0, 2.0)


def test_integrated_gradients_sum_to_the_change_of_the_loss():
    """Completeness (Sundararajan et al. 2017, proposition 1)."""
    frozen = build("llama", SMALL)
    chosen = examples(3)
    batch = collate(chosen, full=False)
    with Streams(frozen, INTERCHANGE) as streams:
        scores = integrated_gradients(streams, chosen, Passes(2), points=60)
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
