"""Gradients by mask and integrated gradients against their defining properties."""

import pytest
import torch

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.attribution.mask_gradients import integrated_gradients, rank_scores
from bigcircuit.data.collate import collate
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.logit_metrics import kl_divergence
from bigcircuit.model.granularity import SITE_WIDTH
from tests.helpers.tiny_models import TINY, tiny_examples, tiny_model


def test_integrated_gradients_sum_to_the_change_of_the_loss():
    """Completeness (Sundararajan et al. 2017, proposition 1)."""
    frozen = tiny_model("llama", TINY)
    chosen = tiny_examples(3)
    batch = collate(chosen, full=False)
    with Streams(frozen, INTERCHANGE) as streams:
        scores = integrated_gradients(streams, chosen, MicroBatches(2), points=60)
        closed = [
            {s: torch.zeros(1, 1, w(shape)) for s, w in SITE_WIDTH.items() if w(shape)} for shape in frozen.shapes
        ]
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
