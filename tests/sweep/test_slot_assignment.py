"""Slots and queue: first come, first served; the trials of a lost worker are quarantined, each with a worker of its own."""

import pytest

pytest.importorskip("ray", reason="sweeps need ray")

from bigcircuit.sweep.slot_assignment import SlotAssignment


@pytest.fixture
def assignment():
    """Two workers without trials, and four trials in the queue."""
    found = SlotAssignment()
    for worker in ("a", "b"):
        found.add_worker(worker)
    for number in range(4):
        found.enqueue(number)
    return found


def test_slots_are_filled_first_come_first_served(assignment):
    assert assignment.fill_slots("a", 2) == [0, 1] and assignment.fill_slots("a", 2) == []
    assert assignment.fill_slots("a", 3) == [2] and assignment.fill_slots("a", 1) == []
    assert assignment.fill_slots("b", 2) == [3] and not assignment.queue
    assert assignment.trials_of("a") == [0, 1, 2] and assignment.by_worker() == [[0, 1, 2], [3]]


def test_a_trial_is_queued_once_and_not_while_it_has_a_slot(assignment):
    assignment.fill_slots("a", 2)
    for number in (0, 2, 7):
        assignment.enqueue(number)
    assert list(assignment.queue) == [2, 3, 7]


def test_a_worker_learns_once_of_an_evicted_trial(assignment):
    assignment.fill_slots("a", 2)
    for number in (0, 3):
        assignment.evict(number)
    assert assignment.trials_of("a") == [1] and list(assignment.queue) == [2]
    assert assignment.pop_evicted("a") == [0] and assignment.pop_evicted("a") == []
    assert assignment.pop_evicted("b") == [], "a queued trial is no worker's"


def test_trials_that_the_worker_has_removed_are_not_evicted_from_it(assignment):
    assignment.fill_slots("a", 3)
    assignment.discard("a", [1])
    assert assignment.trials_of("a") == [0, 2] and assignment.pop_evicted("a") == []


def lose(assignment, worker):
    """The worker is lost and restarted; its trials are first in the queue."""
    lost = assignment.remove_worker(worker)
    assignment.queue.extendleft(reversed(lost))
    assignment.add_worker(worker)
    return lost


def test_each_trial_of_a_lost_worker_is_alone_until_a_call_succeeds(assignment):
    assignment.fill_slots("a", 2)
    assert lose(assignment, "a") == [0, 1]
    assert assignment.fill_slots("a", 4) == [0] and assignment.quarantined("a") == [0]
    assert assignment.fill_slots("a", 4) == [], "nothing beside a quarantined trial"
    assert assignment.release("a") == [0], "its slot goes to the next quarantined trial"
    assert assignment.trials_of("a") == [] and assignment.pop_evicted("a") == [0]
    assert assignment.fill_slots("a", 4) == [1] and assignment.release("a") == [], "no other is quarantined"
    assert assignment.quarantined("a") == [] and assignment.trials_of("a") == [1]
    assert assignment.fill_slots("a", 4) == [2, 3]


def test_a_quarantined_trial_waits_for_an_empty_worker(assignment):
    assignment.fill_slots("a", 1)
    assignment.fill_slots("b", 1)
    lose(assignment, "b")
    assert list(assignment.queue) == [1, 2, 3]
    assert assignment.fill_slots("a", 2) == [2], "others pass it by"
    assert assignment.fill_slots("b", 2) == [1]


def test_what_was_lost_twice_is_still_quarantined(assignment):
    assignment.fill_slots("a", 1)
    lose(assignment, "a")
    assignment.fill_slots("a", 1)
    assert lose(assignment, "a") == [0]
    assert assignment.fill_slots("a", 4) == [0] and assignment.quarantined("a") == [0]
    assert assignment.remove_worker("b") == [] and assignment.remove_worker("b") == [], "it had no trials"
