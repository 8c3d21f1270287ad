"""State of all trials of a sweep: record, config, training state and unread reports of each, and what is written to its folder."""

import sys
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigcircuit.config.schema import Config
from bigcircuit.errors import UserError
from bigcircuit.results.trial_record import TrialRecord, read_trial_records
from bigcircuit.sweep.config import Sweep
from bigcircuit.sweep.messages import Assignment, Progress

if TYPE_CHECKING:
    from bigcircuit.io.checkpoint import SavedState
    from bigcircuit.sweep.trial_dir import TrialDir


_MAX_LOSSES_ALONE = 3
"""Workers that may be lost while they train a trial alone; then the trial counts as the cause and fails."""


class TrialStates:
    """All trials by number. Call `import_torch` before anything else."""

    def __init__(self, sweep: Sweep, planned: Sequence[Mapping[str, Any]], command: Sequence[str]) -> None:
        """planned: settings of the trials that are known ahead; command: the words for each trial's config.json."""
        self._sweep, self._command = sweep, command
        self._output = Path(sweep.config.output)
        records = {
            number: TrialRecord(number, dict(settings), dict(settings)) for number, settings in enumerate(planned)
        }
        records |= {record.number: record for record in map(_resumed, read_trial_records(self._output))}
        self.records = dict(sorted(records.items()))
        self.reports: dict[int, deque[dict[str, Any]]] = {}
        """Reports of each open trial that Tune has not received yet."""
        self._dirs: dict[int, TrialDir] = {}
        self._configs: dict[int, Config] = {}
        self._states: dict[int, SavedState] = {}
        """Training state that a trial resumes from; none before its first call."""
        self._names: dict[str, int] = {}
        """Tune's name of a trial -> number."""
        self._losses_alone: dict[int, int] = {}

    def import_torch(self) -> None:
        """Import the modules that need torch, for states and circuits."""
        from bigcircuit.sweep.trial_dir import TrialDir

        self._trial_dir = TrialDir

    def ended(self, number: int) -> bool:
        """Return whether a trial has finished, was stopped or has failed."""
        return self.records[number].ended

    @property
    def registered(self) -> int:
        """Number of trials that Tune has named in this start."""
        return len(self._names)

    # Requests of Tune

    def number_of(self, name: str) -> int | None:
        """Return the number of the trial that Tune calls `name`; None if it is not registered."""
        return self._names.get(name)

    def register(self, name: str, settings: dict[str, Any]) -> int:
        """Give a new name a number: after a resume that of the trial which has these settings now, else a new one."""
        taken = set(self._names.values())
        same = [n for n, record in self.records.items() if n not in taken and record.settings == settings]
        number = same[0] if same else max(self.records, default=-1) + 1
        if not same:
            self.records[number] = TrialRecord(number, settings, dict(settings))
        self._names[name] = number
        if number not in self._dirs:
            self.open(number)
        return number

    def open(self, number: int) -> None:
        """Create or reopen the folder of a trial, and replay the reports of earlier starts to the search and the scheduler.

        Population-based training gets no replays, since it would act on old reports as if they were new; of a trial that has
        ended it gets the last report.
        """
        record = self.records[number]
        trial = self._dirs[number] = self._trial_dir(self._output / "trials" / f"{number:03d}", record)
        trial.save_record()
        if not record.ended and self._make_config(number):
            state = trial.begin(self._configs[number], self._command)
            if state is not None:
                self._states[number] = state
            trial.save_record()
        rows = trial.validations()
        if self._sweep.settings.scheduler == "pbt":
            rows = rows[-1:] if record.ended else []
        last = sys.maxsize if record.ended else record.decided_step
        reports = self.reports[number] = deque(
            validation_report(number, row, decided=row["step"] <= last) for row in rows
        )
        if reports and record.status in ("finished", "stopped"):
            reports[-1]["done"] = True

    def change_settings(self, number: int, settings: dict[str, Any]) -> None:
        """Replace the settings of a trial, as population-based training does."""
        self.records[number].settings = settings
        if self._make_config(number):
            self._dirs[number].save_config(self._configs[number], self._command)

    def mark_decided(self, number: int) -> None:
        """Record that the scheduler has decided on all reports of a trial so far: Tune requests another one."""
        record = self.records[number]
        if record.validation:
            record.decided_step = record.validation["step"]
            self._dirs[number].save_record()

    def stop(self, number: int) -> None:
        """Record that Tune has stopped a trial, unless it has ended before."""
        if not self.ended(number):
            self.records[number].status, self.records[number].open_updates = "stopped", 0
            self._dirs[number].save_record()

    def save_checkpoint(self, number: int, folder: Path) -> None:
        """Write a trial's training state, as of its last report, to a folder of Tune's."""
        if number in self._states:
            self._dirs[number].save_checkpoint(self._states[number], 1, folder)

    def load_checkpoint(self, number: int, folder: Path) -> None:
        """Set a trial to the training state that `save_checkpoint` wrote, of the same trial or another one."""
        state = self._dirs[number].newest_checkpoint(folder)
        if state is not None:
            self._states[number] = state
            self._dirs[number].restore(state, self._sweep.config.train.keep_checkpoints)

    # Calls to workers

    def assign(self, number: int) -> Assignment:
        """Record that a trial gets a slot. Returns what its worker needs."""
        self.records[number].status = "running"
        self._set_open_updates(number)
        self._dirs[number].save_record()
        return Assignment(number, self._configs[number], self._states.get(number))

    def record(self, progress: Progress, assigned: Collection[int]) -> None:
        """Record and write the result of a call; assigned: the trials that still have their slots.

        Rows of a trial that was evicted during the call are not logged: it was stopped, or resumes from another state.
        """
        settings = self._sweep.config.train
        self._states |= progress.states
        for number, step in progress.steps.items():
            trial, record = self._dirs[number], self.records[number]
            record.step, record.seconds = step, record.seconds + progress.seconds
            record.updates += progress.updates
            record.validation = progress.validations.get(number, record.validation)
            if number in assigned or number in progress.results:
                trial.log(progress.rows.get(number, []))
                self._set_open_updates(number)
            if number in progress.results:
                trial.write_result(progress.results[number])
                record.status, record.open_updates = "finished", 0
                self._states.pop(number, None)
            elif number in progress.validations or step % settings.save_every == 0:
                trial.save_checkpoint(progress.states[number], settings.keep_checkpoints)
            trial.save_record()
        for number, message in progress.failures.items():
            self.fail(number, message)

    def fail(self, number: int, message: str) -> None:
        """Record that a trial has failed; message: why, in one line."""
        record = self.records[number]
        record.status, record.error, record.open_updates = "failed", message, 0
        self._dirs[number].save_record()

    def mark_waiting(self, number: int) -> None:
        """Set the status of a trial without a slot, unless it has ended. Not written before the next change."""
        if not self.ended(number):
            self.records[number].status, self.records[number].open_updates = "waiting", 0

    def record_loss(self, number: int, reason: str, alone: bool) -> None:
        """Record that the worker of a trial was lost; alone: whether the worker had no other trial.

        A trial fails when it was alone with several lost workers.
        """
        self.records[number].updates += self.records[number].open_updates
        self.mark_waiting(number)
        self._losses_alone[number] = self._losses_alone.get(number, 0) + alone
        if self._losses_alone[number] >= _MAX_LOSSES_ALONE and not self.ended(number):
            self.records[number].retry_on_resume = True
            self.fail(number, f"{_MAX_LOSSES_ALONE} workers were lost with it alone, the last by {reason}")

    def save_all(self) -> None:
        """Write a checkpoint of every trial that has not ended."""
        for number, state in self._states.items():
            if not self.ended(number):
                self.records[number].open_updates = 0
                self._dirs[number].save_checkpoint(state, self._sweep.config.train.keep_checkpoints)
                self._dirs[number].save_record()

    def write_outputs(self) -> None:
        """Write the tables, the Pareto front and the report page of the trials so far. Raises UserError."""
        from bigcircuit.report.sweep_outputs import write_sweep_outputs

        write_sweep_outputs(self._output)

    def _set_open_updates(self, number: int) -> None:
        """Set how many updates are lost at most if the trial's next call is cut off: up to its next report or checkpoint."""
        record, train = self.records[number], self._configs[number].train
        ends = [(record.step // every + 1) * every for every in (train.validate_every, train.save_every)]
        record.open_updates = min(*ends, record.steps) - record.step

    def _make_config(self, number: int) -> bool:
        """Make the config of a trial. Returns False, with the trial failed, where its settings do not fit together."""
        try:
            self._configs[number] = self._sweep.trial_config(self.records[number].settings, number)
        except UserError as error:
            self.fail(number, str(error).removeprefix(f"trial {number}: "))
            return False
        return True


def _resumed(record: TrialRecord) -> TrialRecord:
    """Prepare the record of an earlier start: count the updates of a call that was cut off, and reset a trial to retry."""
    if record.retry_on_resume:
        record.status, record.error, record.retry_on_resume = "waiting", None, False
    if not record.ended:
        record.status, record.updates, record.open_updates = "waiting", record.updates + record.open_updates, 0
    return record


def validation_report(number: int, row: Mapping[str, Any], done: bool = False, decided: bool = False) -> dict[str, Any]:
    """Return Tune's report of a validation: row is its row of the metrics.

    decided: whether it is the replay of a report that the scheduler has decided on in an earlier start; the decision stands.
    """
    names = {"objective": "objective", "kl": "kl", "neurons": "kept.total"}
    values = {name: row[f"validation.{key}"] for name, key in names.items()}
    return {"number": number, "step": row["step"], **values, "done": done, "decided": decided}


def last_report(record: TrialRecord) -> dict[str, Any]:
    """Return Tune's report of a trial that has ended: its error, or that it is done."""
    return {"number": record.number, "error": record.error} if record.error else {"number": record.number, "done": True}
