"""Micro-batches: every example once, the same on every division among ranks, little padding."""

import pytest

from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from tests.helpers.examples import EXAMPLES, example


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_passes_hold_every_example_once(size):
    seen = [micro_batch.batch.ids.tolist() for micro_batch in MicroBatches(size).iterate(EXAMPLES, full=True)]
    assert sorted(number for ids in seen for number in ids) == list(range(len(EXAMPLES)))
    assert all(len(ids) == size for ids in seen[:-1])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_ranks_divide_the_same_micro_batches_and_make_as_many_passes(count):
    alone = [[e.id for e in micro_batch.examples] for micro_batch in MicroBatches(2).iterate(EXAMPLES, full=False)]
    of_ranks = [list(MicroBatches(2, Ranks(rank, count)).iterate(EXAMPLES, full=False)) for rank in range(count)]
    assert len({len(pieces) for pieces in of_ranks}) == 1
    dealt = [[e.id for e in p.examples] for turn in zip(*of_ranks, strict=True) for p in turn if p.is_counted]
    assert dealt == alone


def test_passes_pad_little_and_do_not_depend_on_the_order_of_the_data():
    lengths = [3, 30, 4, 29, 5, 28, 3, 31]
    found = [example(number, [1] * n, [[3]], [[4]]) for number, n in enumerate(lengths)]
    sorted_ones = [micro_batch.batch for micro_batch in MicroBatches(2).iterate(found, full=True)]
    assert [batch.clean.shape[1] for batch in sorted_ones] == [3, 5, 29, 31]
    again = [micro_batch.batch.ids.tolist() for micro_batch in MicroBatches(2).iterate(found[::-1], full=True)]
    assert again == [batch.ids.tolist() for batch in sorted_ones]
