"""Which trials hold the slots of which worker, and which wait for one."""

from collections import deque
from collections.abc import Iterable

from bigcircuit.sweep.worker_group import WorkerGroup


class SlotAssignment:
    """Trials by number. A worker has slots from `arrived` to `lost`."""

    def __init__(self) -> None:
        self.queue: deque[int] = deque()
        """Trials that wait, who is first goes first."""
        self._suspects: set[int] = set()
        """Those of whom one may have cost its worker: each sits alone until a call has gone well."""
        self._seated: dict[WorkerGroup, list[int]] = {}
        self._leaving: dict[WorkerGroup, list[int]] = {}

    def arrived(self, worker: WorkerGroup) -> None:
        """A worker that has been started, or started again, is empty."""
        self._seated[worker], self._leaving[worker] = [], []

    def lost(self, worker: WorkerGroup) -> list[int]:
        """Those who sat there, and now sit nowhere and are suspected."""
        seated = self._seated.pop(worker, [])
        self._suspects |= set(seated)
        return seated

    def of(self, worker: WorkerGroup) -> list[int]:
        """Those who sit with a worker, in the order they came."""
        return list(self._seated[worker])

    def all(self) -> list[list[int]]:
        """Those of each worker."""
        return [list(seated) for seated in self._seated.values()]

    def wait(self, number: int) -> None:
        """Wait for a seat, where the trial neither has one nor waits."""
        if number not in self.queue and not any(number in seated for seated in self._seated.values()):
            self.queue.append(number)

    def fill(self, worker: WorkerGroup, slots: int) -> list[int]:
        """Seat those who wait until so many slots are taken. Returns who came."""
        if self.on_trial(worker):
            return []
        free = max(0, slots - len(self._seated[worker]))
        suspects = [number for number in self.queue if number in self._suspects]
        others = [number for number in self.queue if number not in self._suspects]
        came = suspects[:1] if suspects and not self._seated[worker] else others[:free]
        for number in came:
            self.queue.remove(number)
        self._seated[worker] += came
        return came

    def on_trial(self, worker: WorkerGroup) -> list[int]:
        """Who sits alone with a worker because it is suspected, if somebody does."""
        return [number for number in self._seated[worker] if number in self._suspects]

    def acquit(self, worker: WorkerGroup) -> list[int]:
        """A call has gone well. Returns who was suspected and leaves its seat for others who are."""
        cleared = self.on_trial(worker)
        self._suspects -= set(cleared)
        leave = cleared if self._suspects & set(self.queue) else []
        for number in leave:
            self.free(number)
        return leave

    def free(self, number: int) -> None:
        """Take the seat of a trial; its worker is to be told."""
        for worker, seated in self._seated.items():
            if number in seated:
                seated.remove(number)
                self._leaving[worker].append(number)
        if number in self.queue:
            self.queue.remove(number)

    def leaving(self, worker: WorkerGroup) -> list[int]:
        """Whom a worker has not been told of yet."""
        leaving, self._leaving[worker] = self._leaving[worker], []
        return leaving

    def left(self, worker: WorkerGroup, numbers: Iterable[int]) -> None:
        """The worker itself has let them go."""
        gone = set(numbers)
        self._seated[worker] = [number for number in self._seated[worker] if number not in gone]
