"""Plain passes that are kept: the second time nothing is computed, and the bits are the same."""

import pytest
import torch

from bigcircuit.ablation.ablation import INTERCHANGE, ZERO
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.forward.kept_passes import KeptPasses
from bigcircuit.forward.plain_passes import plain_passes
from bigcircuit.forward.streams import Streams
from bigcircuit.runtime.host_memory import FreeMemory
from tests.helpers.tiny_models import DENSE_SITES, TINY_CONFIGS, tiny_model, uneven_examples


class OtherIsFull(Ranks):
    """One of two ranks, of which the other has no room."""

    def maximum(self, number: int) -> int:
        """Return 1: the other rank says that it keeps nothing."""
        return max(number, 1)


def passes_of(streams, micro_batches, **settings):
    """Make plain passes over pairs, and count the runs of the model."""
    runs = []
    hook = streams.frozen.model.register_forward_pre_hook(lambda *_: runs.append(1))
    found = [*plain_passes(streams, micro_batches, uneven_examples(), DENSE_SITES, **{"full": True} | settings)]
    hook.remove()
    return found, len(runs)


@pytest.mark.parametrize("ablation", [INTERCHANGE, ZERO], ids=["interchange", "zero"])
def test_the_second_time_nothing_is_computed_and_all_bits_are_the_same(ablation):
    frozen, each = tiny_model("llama", TINY_CONFIGS["llama"][0]), 2 if ablation is INTERCHANGE else 1
    with Streams(frozen, ablation, kept=KeptPasses(1.0)) as streams:
        first, runs = passes_of(streams, MicroBatches(2))
        again, more = passes_of(streams, MicroBatches(2))
        _, other_collation = passes_of(streams, MicroBatches(2), full=False)
    assert (runs, more, other_collation) == (each * len(first), 0, each * len(first))
    for one, other in zip(first, again, strict=True):
        assert one.micro_batch.examples == other.micro_batch.examples
        assert torch.equal(one.reference, other.reference)
        assert (one.corrupted is None) == (ablation is ZERO)
        if one.corrupted is not None:
            pairs = zip(one.corrupted.tensors(), other.corrupted.tensors(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(("limit", "ranks"), [(1e-6, Ranks()), (1.0, OtherIsFull())], ids=["no room", "other rank"])
def test_what_does_not_fit_on_every_rank_is_computed_again(limit, ranks):
    frozen = tiny_model("llama", TINY_CONFIGS["llama"][0])
    with Streams(frozen, INTERCHANGE, kept=KeptPasses(limit)) as streams:
        first, runs = passes_of(streams, MicroBatches(2, ranks))
        _, more = passes_of(streams, MicroBatches(2, ranks))
    assert runs == more == 2 * len(first)


def test_no_more_than_half_of_the_free_memory_is_taken(monkeypatch):
    measured = FreeMemory(free=600, is_gpu=False)
    monkeypatch.setattr("bigcircuit.forward.kept_passes.FreeMemory.measure", lambda _: measured)
    frozen = tiny_model("llama", TINY_CONFIGS["llama"][0])
    with Streams(frozen, INTERCHANGE, kept=KeptPasses(1.0)) as streams:
        first, runs = passes_of(streams, MicroBatches(2))
        _, more = passes_of(streams, MicroBatches(2))
    assert sum(one.bytes for one in first) > 300 and runs == more == 2 * len(first)


def test_logits_of_the_caller_are_not_computed():
    frozen = tiny_model("llama", TINY_CONFIGS["llama"][0])
    with Streams(frozen, INTERCHANGE, kept=KeptPasses(1.0)) as streams:
        found, runs = passes_of(streams, MicroBatches(2), references=lambda _: torch.ones(3))
        _, more = passes_of(streams, MicroBatches(2))
    assert runs == len(found) and more == 2 * runs
    assert all(torch.equal(one.reference, torch.ones(3)) for one in found)
