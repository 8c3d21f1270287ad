"""When a call begins, and how many updates it makes."""

import pytest

from bigcircuit.sweep.call_policy import CallPolicy, SlotUse

FULL = {"requested": 2, "assigned": 2, "slots": 2, "queued": 0, "more_expected": True, "quiet": 0.0}


@pytest.mark.parametrize(
    ("changed", "begins"),
    [
        ({}, True),
        ({"requested": 0}, False),
        ({"requested": 0, "quiet": 99.0}, False),
        ({"requested": 1, "quiet": 9.0}, False),
        ({"requested": 1, "quiet": 11.0}, True),
        ({"slots": 3, "quiet": 1.0}, False),
        ({"slots": 3, "quiet": 3.0}, True),
        ({"slots": 3, "more_expected": False}, True),
    ],
)
def test_a_call_waits_a_little_for_trials_that_could_share_its_passes(changed, begins):
    assert SlotUse(**{**FULL, **changed}).may_begin() is begins


@pytest.mark.parametrize(
    ("changed", "paused"),
    [
        ({"requested": 1, "queued": 1, "quiet": 1.5}, True),
        ({"requested": 1, "queued": 1, "quiet": 0.5}, False),
        ({"requested": 1, "quiet": 1.5}, False),
        ({"queued": 1, "quiet": 1.5}, False),
    ],
)
def test_a_trial_without_a_request_gives_its_slot_to_a_queued_one(changed, paused):
    assert SlotUse(**{**FULL, **changed}).has_paused() is paused


def test_calls_last_about_five_seconds_and_one_while_trials_may_come():
    policy = CallPolicy()
    assert policy.rate() == 0.0 and policy.max_updates(can_fill=False) == 2
    policy.record(3.0, 0)
    assert policy.rate() == 0.0, "a call that only loads says nothing of the speed"
    policy.record(2.0, 8)
    policy.record(2.0, 12)
    assert policy.rate() == pytest.approx(5.0)
    assert (policy.max_updates(can_fill=False), policy.max_updates(can_fill=True)) == (25, 5)
    slow = CallPolicy()
    slow.record(60.0, 2)
    assert slow.max_updates(can_fill=True) == 1


def test_only_the_last_calls_count():
    policy = CallPolicy()
    policy.record(1000.0, 1)
    for _ in range(20):
        policy.record(1.0, 10)
    assert policy.rate() == pytest.approx(10.0)
