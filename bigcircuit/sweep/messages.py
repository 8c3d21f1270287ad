"""Messages between the scheduler actor, the model workers and the live table. Loads no torch: the scheduler and Tune import it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from bigcircuit.config.schema import Config
from bigcircuit.results.trial_record import TrialRecord

if TYPE_CHECKING:
    from bigcircuit.io.checkpoint import SavedState
    from bigcircuit.train.final_circuits import RunResult


@dataclass(frozen=True)
class PhaseReceiver:
    """Where a worker sends the phases that it is in: the scheduler actor."""

    scheduler: Any
    """Handle of the SchedulerActor."""
    worker: int
    """Number of the worker."""

    def __call__(self, line: str) -> None:
        """Send a line, without waiting for an answer."""
        self.scheduler.show_phase.remote(self.worker, line)


class Assignment(NamedTuple):
    """A trial assigned to a slot: what a worker needs to train it."""

    number: int
    config: Config
    state: SavedState | None
    """Training state to resume from; None: start at step 0."""


@dataclass
class Progress:
    """Result of one call to a worker; the dicts are keyed by trial number. Its cohort: the trials trained together in the call."""

    seconds: float = 0.0
    """Wall time of the call."""
    updates: int = 0
    """Updates that each trial of the cohort made."""
    steps: dict[int, int] = field(default_factory=dict)
    """Step of each trial of the cohort after the call."""
    states: dict[int, SavedState] = field(default_factory=dict)
    """Training state after the call, on the host: the trial can resume from it on any worker."""
    rows: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """New rows for metrics.jsonl."""
    validations: dict[int, dict[str, Any]] = field(default_factory=dict)
    """The row that holds a validation, of each trial that was validated."""
    results: dict[int, RunResult] = field(default_factory=dict)
    """Final circuits of trials that have made their last update; the worker has removed them from their slots."""
    failures: dict[int, str] = field(default_factory=dict)
    """Error in one line of each trial that failed; the worker has removed it from its slot."""
    notes: list[str] = field(default_factory=list)
    """New lines for the user about model and pairs, the same from every worker."""


@dataclass(frozen=True)
class SweepStatus:
    """State of a sweep, for the live table."""

    records: Sequence[TrialRecord]
    total: int
    """Number of trials of the whole sweep, including trials that the search has not drawn yet."""
    assigned: Sequence[Sequence[int]]
    """Numbers of the trials in slots, by worker."""
    slots: int
    """Slots of all workers."""
    rate: float
    """Updates per second of all workers, by their last calls; an update that members share counts once."""
    updates: int
    """Updates since this start, summed over trials."""
    steps: int
    """Updates of the longest trial."""
    loss_reasons: Sequence[str]
    """Why workers were lost, each reason once."""
    phases: Mapping[int, str] = field(default_factory=dict)
    """Number of a worker -> the phase that it is in, with the time left, where that takes long."""
    notes: Sequence[str] = ()
    """Lines about model and pairs, each once."""
