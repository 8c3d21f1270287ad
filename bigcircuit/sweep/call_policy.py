"""When the next call to a worker begins, and how many updates it makes. Pure: no clock, no Ray.

A call that begins later may find more trials in the slots, which then share passes; a long call keeps trials waiting that could
join it.
"""

from collections import deque
from typing import NamedTuple

_MAX_GATHER_SECONDS, _MAX_REQUEST_SECONDS = 2.0, 10.0
"""Longest wait for more trials to fill free slots, and for assigned trials whose next report Tune has not requested."""
_PAUSED_SECONDS = 1.0
"""An assigned trial without a request for so long gives its slot to a queued one: the scheduler has paused it."""
LONG_CALL_SECONDS, _SHORT_CALL_SECONDS = 5.0, 1.0
"""Aim for the length of a call, and while more trials may come for free slots."""
_FIRST_UPDATES = 2
"""Updates of a call while no call has been timed."""


class SlotUse(NamedTuple):
    """Slots of a worker before its next call, as counts of trials."""

    requested: int
    """Assigned trials whose next report is requested: those that the call can train."""
    assigned: int
    slots: int
    queued: int
    """Trials in the queue for slots of any worker."""
    more_expected: bool
    """Whether Tune is going to start more trials."""
    quiet: float
    """Seconds since the last request, eviction or end of a trial."""

    def has_paused(self) -> bool:
        """Return whether assigned trials without a request are to be evicted, for queued ones."""
        return bool(self.queued) and self.requested < self.assigned and self.quiet > _PAUSED_SECONDS

    def may_begin(self) -> bool:
        """Return whether the call begins now: a trial is requested, and none is worth waiting for."""
        awaits_requests = self.requested < self.assigned and self.quiet < _MAX_REQUEST_SECONDS
        awaits_trials = self.assigned < self.slots and self.more_expected and self.quiet < _MAX_GATHER_SECONDS
        return bool(self.requested) and not awaits_requests and not awaits_trials


class CallPolicy:
    """Speed of the last calls to all workers, and the length of the next one that follows from it."""

    def __init__(self) -> None:
        self._calls: deque[tuple[float, int]] = deque(maxlen=20)
        """Seconds and updates of each."""

    def record(self, seconds: float, updates: int) -> None:
        """Add a call that made updates."""
        if updates:
            self._calls.append((seconds, updates))

    def _totals(self) -> tuple[float, int]:
        return sum(seconds for seconds, _ in self._calls), sum(updates for _, updates in self._calls)

    def rate(self) -> float:
        """Return the updates per second of one worker; 0 before the first update."""
        seconds, updates = self._totals()
        return updates / seconds if updates else 0.0

    def max_updates(self, can_fill: bool) -> int:
        """Return how many updates the next call may make; can_fill: whether trials may come for free slots meanwhile."""
        seconds, updates = self._totals()
        if not updates:
            return _FIRST_UPDATES
        return max(1, int((_SHORT_CALL_SECONDS if can_fill else LONG_CALL_SECONDS) * updates / max(seconds, 1e-9)))
