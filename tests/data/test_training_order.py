"""Order of the examples in training."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.data.training_order import TrainingOrder

LENGTHS = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 30)), min_size=1, max_size=40)


def pairs(lengths: list[tuple[int, int]]) -> list[Example]:
    """Pairs by the lengths of their prefixes and of what follows."""
    return [
        Example(
            id=number, clean=(1,) * (prefix + suffix), corrupted=(1,) * prefix + (2,) * suffix,
            answers=((3,),), wrong_answers=((4,),), source="",
        )
        for number, (prefix, suffix) in enumerate(lengths)
    ]  # fmt: skip


def order_of(examples: list[Example], size: int, seed: int = 0, over_suffix: bool = True) -> TrainingOrder:
    return TrainingOrder(examples, size, seed, over_suffix=over_suffix)


@given(LENGTHS, st.integers(1, 50), st.integers(0, 5), st.booleans())
def test_each_epoch_has_every_example_once(lengths, size, seed, over_suffix):
    examples = pairs(lengths)
    order = order_of(examples, size, seed, over_suffix)
    seen = [one.id for step in range(-(-3 * len(examples) // size)) for one in order.batch(step)]
    for epoch in range(3):
        assert sorted(seen[epoch * len(examples) : (epoch + 1) * len(examples)]) == [one.id for one in examples]


@given(LENGTHS, st.integers(1, 50), st.integers(0, 9))
def test_a_batch_is_a_function_of_the_step_alone(lengths, size, step):
    examples = pairs(lengths)
    walked = order_of(examples, size)
    for before in range(step):
        walked.batch(before)
    state = torch.get_rng_state()
    assert walked.batch(step) == order_of(examples, size).batch(step)
    assert torch.equal(torch.get_rng_state(), state)


@given(LENGTHS, st.integers(1, 50), st.integers(0, 9))
def test_used_examples_are_those_of_the_batches(lengths, size, steps):
    order = order_of(pairs(lengths), size)
    ids = {one.id for step in range(steps) for one in order.batch(step)}
    assert [one.id for one in order.used(steps)] == sorted(ids)


def test_orders_differ_by_seed_and_by_epoch():
    examples = pairs([(0, n % 7 + 1) for n in range(100)])
    assert order_of(examples, 8, 3).batch(4) != order_of(examples, 8, 4).batch(4)
    order = order_of(examples, 100)
    assert order.batch(0) != order.batch(1)


@pytest.mark.parametrize("over_suffix", [False, True])
def test_less_is_padded_than_in_batches_of_any_lengths(over_suffix):
    """Of 160 pairs whose lengths are spread evenly, in batches of 8 and micro-batches of 4; computed are the suffixes, or all."""
    generator = torch.Generator().manual_seed(0)
    prefix, suffix = (torch.randint(1, 41, (160,), generator=generator).tolist() for _ in range(2))
    examples = pairs([*zip(prefix, suffix, strict=True)])
    micro_batches = MicroBatches(4).aligned() if over_suffix else MicroBatches(4)

    def padded(batches: list[list[Example]]) -> float:
        total = useful = 0
        for batch in batches:
            found = [len(e.clean) - (prefix[e.id] if over_suffix else 0) for e in batch]
            for part in micro_batches.iterate(batch, full=False):
                total += len(part.examples) * (part.batch.clean.shape[1] - (part.batch.shared if over_suffix else 0))
            useful += sum(found)
        return 1 - useful / total

    drawn = torch.randperm(160, generator=generator).view(-1, 8).tolist()
    order = order_of(examples, 8, over_suffix=over_suffix)
    assert padded([order.batch(step) for step in range(20)]) < 0.5 * padded(
        [[examples[i] for i in row] for row in drawn]
    )


def test_batches_of_an_epoch_are_not_sorted_by_length():
    """So the last batches of an epoch are no longer than the first."""
    examples = pairs([(0, number + 1) for number in range(512)])
    order = order_of(examples, 4)
    longest = [max(len(one.clean) for one in order.batch(step)) for step in range(128)]
    assert abs(sum(longest[:64]) - sum(longest[64:])) < 0.1 * sum(longest)
