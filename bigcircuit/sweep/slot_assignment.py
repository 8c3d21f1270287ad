"""Assignment of trials to slots of workers: which trials have a slot, are queued, or are quarantined."""

from collections import deque
from collections.abc import Iterable

from bigcircuit.sweep.worker_group import WorkerGroup


class SlotAssignment:
    """Trials by number, in the slots of the workers that are up (from `add_worker` to `remove_worker`) or in a queue.

    Trials that were assigned to a worker when it was lost are quarantined, since one of them may be the cause: each is assigned
    to a worker of its own until a call there succeeds (`release`).
    """

    def __init__(self) -> None:
        self.queue: deque[int] = deque()
        """Trials that wait for a slot, first come, first served."""
        self._quarantined: set[int] = set()
        self._assigned: dict[WorkerGroup, list[int]] = {}
        self._evicted: dict[WorkerGroup, list[int]] = {}
        """Trials without a slot by now, which the worker still holds."""

    def add_worker(self, worker: WorkerGroup) -> None:
        """Add a worker that was started or restarted, with empty slots."""
        self._assigned[worker], self._evicted[worker] = [], []

    def remove_worker(self, worker: WorkerGroup) -> list[int]:
        """Remove a lost worker. Returns the trials that were assigned to its slots; they are quarantined from now on."""
        assigned = self._assigned.pop(worker, [])
        self._quarantined |= set(assigned)
        return assigned

    def trials_of(self, worker: WorkerGroup) -> list[int]:
        """Return the trials in the slots of a worker, in the order of their assignment."""
        return list(self._assigned[worker])

    def by_worker(self) -> list[list[int]]:
        """Return the trials in the slots of every worker."""
        return [list(assigned) for assigned in self._assigned.values()]

    def enqueue(self, number: int) -> None:
        """Append a trial to the queue, unless it is queued or assigned already."""
        if number not in self.queue and not any(number in assigned for assigned in self._assigned.values()):
            self.queue.append(number)

    def fill_slots(self, worker: WorkerGroup, slots: int) -> list[int]:
        """Assign queued trials to a worker until `slots` of its slots are taken. Returns the trials assigned.

        A quarantined trial is assigned only to an empty worker, before all others, and nothing beside it.
        """
        if self.quarantined(worker):
            return []
        free = max(0, slots - len(self._assigned[worker]))
        quarantined = [number for number in self.queue if number in self._quarantined]
        others = [number for number in self.queue if number not in self._quarantined]
        new = quarantined[:1] if quarantined and not self._assigned[worker] else others[:free]
        for number in new:
            self.queue.remove(number)
        self._assigned[worker] += new
        return new

    def quarantined(self, worker: WorkerGroup) -> list[int]:
        """Return the quarantined trials in the slots of a worker: one, alone, or none."""
        return [number for number in self._assigned[worker] if number in self._quarantined]

    def release(self, worker: WorkerGroup) -> list[int]:
        """Release the worker's trial from quarantine, after a call that succeeded.

        Returns the trials evicted with that: the released one, if other quarantined trials are queued for an empty worker.
        """
        released = self.quarantined(worker)
        self._quarantined -= set(released)
        evicted = released if self._quarantined & set(self.queue) else []
        for number in evicted:
            self.evict(number)
        return evicted

    def evict(self, number: int) -> None:
        """Take a trial out of its slot, or out of the queue; `pop_evicted` passes it on to the worker."""
        for worker, assigned in self._assigned.items():
            if number in assigned:
                assigned.remove(number)
                self._evicted[worker].append(number)
        if number in self.queue:
            self.queue.remove(number)

    def pop_evicted(self, worker: WorkerGroup) -> list[int]:
        """Return, once, the evicted trials that a worker still holds, for its next call."""
        evicted, self._evicted[worker] = self._evicted[worker], []
        return evicted

    def discard(self, worker: WorkerGroup, numbers: Iterable[int]) -> None:
        """Empty the slots of trials that the worker itself has removed because they finished or failed."""
        removed = set(numbers)
        self._assigned[worker] = [number for number in self._assigned[worker] if number not in removed]
