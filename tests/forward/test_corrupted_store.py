"""Stored activations of the corrupted run: a pass over the suffix with them is the pass with recorded ones, to the bit."""

import pytest
import torch

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.forward.corrupted_store import CorruptedStore, Lengths, stored_values
from bigcircuit.forward.streams import Streams
from tests.helpers.tiny_models import DENSE_SITES, TINY_CASES, random_masks, tiny_model, uneven_examples

CASES = [case for case in TINY_CASES if case.values[0] in ("llama", "gpt2", "gemma2", "falcon")]


@pytest.mark.parametrize(("name", "settings"), CASES)
def test_a_stored_batch_is_the_recorded_one(name, settings):
    """Examples of several lengths, in other company than that in which they were stored."""
    frozen, examples = tiny_model(name, settings), uneven_examples()
    batches = MicroBatches(2).aligned()
    with Streams(frozen, INTERCHANGE) as streams:
        store = CorruptedStore(streams, examples, MicroBatches(4), DENSE_SITES)
        for micro_batch in batches.iterate([examples[index] for index in (3, 0, 2, 1)], full=False):
            batch = micro_batch.batch
            masks = random_masks(frozen, 2, len(batch.clean))
            recorded, stored = streams.record(batch, DENSE_SITES), store(micro_batch)
            one, other = (streams.masked(batch, masks.__getitem__, 2, found) for found in (recorded, stored))
            two_streams = streams.masked(batch, masks.__getitem__, 2)
            torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(other, two_streams, atol=1e-5, rtol=1e-4)
    if name != "falcon":  # some of its variants repeat key/value heads before they attend
        assert store.bytes == 4 * stored_values(frozen.shapes, DENSE_SITES, Lengths.total(examples))


def test_a_batch_that_is_not_aligned_is_no_batch_of_the_store():
    frozen, examples = tiny_model("llama", CASES[-1].values[1]), uneven_examples()
    with Streams(frozen, INTERCHANGE) as streams:
        store = CorruptedStore(streams, examples, MicroBatches(4), DENSE_SITES)
        (micro_batch,) = MicroBatches(4).iterate(examples, full=False)
        with pytest.raises(AssertionError, match="aligned"):
            store(micro_batch)


def test_pairs_that_differ_from_their_first_token_on_have_no_prefix():
    frozen = tiny_model("llama", CASES[-1].values[1])
    examples = [
        one._replace(corrupted=(3 + one.clean[0] % 90, *one.clean[1:]))
        for one in uneven_examples()
        if one.clean[0] != 3
    ]
    with Streams(frozen, INTERCHANGE) as streams:
        store = CorruptedStore(streams, examples, MicroBatches(4), DENSE_SITES)
        (micro_batch,) = MicroBatches(4).aligned().iterate(examples, full=False)
        assert micro_batch.batch.shared == 0
        masks = random_masks(frozen, 2, len(examples))
        found = streams.masked(micro_batch.batch, masks.__getitem__, 2, store(micro_batch))
        torch.testing.assert_close(found, streams.masked(micro_batch.batch, masks.__getitem__, 2), atol=1e-5, rtol=1e-4)
