"""The trials of a sweep: what is known of each, where it can go on from, and what is written of it."""

import sys
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigcircuit.config.schema import Config
from bigcircuit.errors import UserError
from bigcircuit.results.trial_record import TrialRecord, read_trial_records
from bigcircuit.sweep.config import Sweep
from bigcircuit.sweep.messages import Entry, Progress

if TYPE_CHECKING:
    from bigcircuit.io.checkpoint import State
    from bigcircuit.sweep.trial_dir import TrialDir


_LIVES = 3
"""Workers that may be lost under a trial alone before it is held to be the cause."""


class TrialStates:
    """All trials, by number. Nothing may be asked of one before `load`."""

    def __init__(self, sweep: Sweep, planned: Sequence[Mapping[str, Any]], command: Sequence[str]) -> None:
        """planned: the settings of trials that are known ahead."""
        self._sweep, self._command = sweep, command
        self._output = Path(sweep.config.output)
        records = {
            number: TrialRecord(number, dict(settings), dict(settings)) for number, settings in enumerate(planned)
        }
        records |= {record.number: record for record in map(_again, read_trial_records(self._output))}
        self.records = dict(sorted(records.items()))
        self.reports: dict[int, deque[dict[str, Any]]] = {}
        """What Tune has not been told yet, of each trial that has been opened."""
        self._folders: dict[int, TrialDir] = {}
        self._configs: dict[int, Config] = {}
        self._states: dict[int, State] = {}
        self._names: dict[str, int] = {}
        self._losses: dict[int, int] = {}

    def load(self) -> None:
        """Load torch, which states and circuits need."""
        self._folder = import_module("bigcircuit.sweep.trial_dir").TrialDir

    def over(self, number: int) -> bool:
        """Whether it will not go on."""
        return self.records[number].over

    @property
    def met(self) -> int:
        """How many Tune has named."""
        return len(self._names)

    # What Tune does with a trial

    def number(self, name: str) -> int | None:
        """Of the trial that Tune calls `name`, if it has been met."""
        return self._names.get(name)

    def meet(self, name: str, settings: dict[str, Any]) -> int:
        """Give a new name its number. A trial of a sweep that goes on is known by the settings it has now."""
        taken = set(self._names.values())
        same = [n for n, record in self.records.items() if n not in taken and record.settings == settings]
        number = same[0] if same else max(self.records, default=-1) + 1
        if not same:
            self.records[number] = TrialRecord(number, settings, dict(settings))
        self._names[name] = number
        if number not in self._folders:
            self.open(number)
        return number

    def open(self, number: int) -> None:
        """Prepare a trial: what it reported before is reported again, for the search and the scheduler to know.

        Not to population-based training, which would act on old reports as if they were of now: it hears of one that is over
        that it is.
        """
        record = self.records[number]
        trial = self._folders[number] = self._folder(self._output / "trials" / f"{number:03d}", record)
        trial.save()
        if not record.over and self._configured(number):
            state = trial.begin(self._configs[number], self._command)
            if state is not None:
                self._states[number] = state
            trial.save()
        rows = trial.validations()
        if self._sweep.settings.scheduler == "pbt":
            rows = rows[-1:] if record.over else []
        decided = sys.maxsize if record.over else record.let_on
        reports = self.reports[number] = deque(report(number, row, decided=row["step"] <= decided) for row in rows)
        if reports and record.status in ("finished", "stopped"):
            reports[-1]["done"] = True

    def change(self, number: int, settings: dict[str, Any]) -> None:
        """Population-based training lets a trial go on with others."""
        self.records[number].settings = settings
        if self._configured(number):
            self._folders[number].configure(self._configs[number], self._command)

    def let_on(self, number: int) -> None:
        """Tune has heard all its reports and asks for another."""
        record = self.records[number]
        if record.validation:
            record.let_on = record.validation["step"]
            self._folders[number].save()

    def stop(self, number: int) -> None:
        """The scheduler has stopped it, or it is over."""
        if not self.over(number):
            self.records[number].status, self.records[number].at_stake = "stopped", 0
            self._folders[number].save()

    def keep(self, number: int, folder: Path) -> None:
        """Write its state at its last report to a folder of Tune's."""
        if number in self._states:
            self._folders[number].keep(self._states[number], 1, folder)

    def go_back(self, number: int, folder: Path) -> None:
        """Go on from a state that `keep` has written, its own or another one's."""
        state = self._folders[number].newest(folder)
        if state is not None:
            self._states[number] = state
            self._folders[number].go_back(state, self._sweep.config.train.keep_checkpoints)

    # What workers do with it

    def entry(self, number: int) -> Entry:
        """What a worker needs to take it in."""
        self.records[number].status = "running"
        self._started(number)
        self._folders[number].save()
        return Entry(number, self._configs[number], self._states.get(number))

    def take_in(self, progress: Progress, seated: Collection[int]) -> None:
        """Write down what came of a call. Who has lost the seat meanwhile makes those updates again, and then logs them."""
        settings = self._sweep.config.train
        self._states |= progress.states
        for number, step in progress.steps.items():
            trial, record = self._folders[number], self.records[number]
            record.step, record.seconds = step, record.seconds + progress.seconds
            record.updates += progress.updates
            record.validation = progress.validations.get(number, record.validation)
            if number in seated or number in progress.endings:
                trial.log(progress.rows.get(number, []))
                self._started(number)
            if number in progress.endings:
                trial.finish(progress.endings[number])
                record.status, record.at_stake = "finished", 0
                self._states.pop(number, None)
            elif number in progress.validations or step % settings.save_every == 0:
                trial.keep(progress.states[number], settings.keep_checkpoints)
            trial.save()
        for number, message in progress.failed.items():
            self.fail(number, message)

    def fail(self, number: int, message: str) -> None:
        """It cannot go on."""
        record = self.records[number]
        record.status, record.error, record.at_stake = "failed", message, 0
        self._folders[number].save()

    def wait(self, number: int) -> None:
        """It has no slot."""
        if not self.over(number):
            self.records[number].status, self.records[number].at_stake = "waiting", 0

    def lost(self, number: int, reason: str, alone: bool) -> None:
        """Its worker has died under it; alone: and under no other."""
        self.records[number].updates += self.records[number].at_stake
        self.wait(number)
        self._losses[number] = self._losses.get(number, 0) + alone
        if self._losses[number] >= _LIVES and not self.over(number):
            self.records[number].lost = True
            self.fail(number, f"{_LIVES} workers were lost with it alone, the last by {reason}")

    def save(self) -> None:
        """Write where all that are not over can go on from."""
        for number, state in self._states.items():
            if not self.over(number):
                self.records[number].at_stake = 0
                self._folders[number].keep(state, self._sweep.config.train.keep_checkpoints)
                self._folders[number].save()

    def _started(self, number: int) -> None:
        """Reckon how many updates are lost at most if its next call is cut off."""
        record, train = self.records[number], self._configs[number].train
        ends = [(record.step // every + 1) * every for every in (train.validate_every, train.save_every)]
        record.at_stake = min(*ends, record.steps) - record.step

    def _configured(self, number: int) -> bool:
        """Work out its config; where the settings do not fit together it has failed."""
        try:
            self._configs[number] = self._sweep.trial(self.records[number].settings, number)
        except UserError as error:
            self.fail(number, str(error).removeprefix(f"trial {number}: "))
            return False
        return True


def _again(record: TrialRecord) -> TrialRecord:
    """What an earlier start has left, ready to go on: with the updates of a call that was cut off, and a new try."""
    if record.lost:
        record.status, record.error, record.lost = "waiting", None, False
    if not record.over:
        record.status, record.updates, record.at_stake = "waiting", record.updates + record.at_stake, 0
    return record


def report(number: int, row: Mapping[str, Any], done: bool = False, decided: bool = False) -> dict[str, Any]:
    """What Tune is told of a validation; decided: whether an earlier start has told it, and what came of it stands."""
    names = {"objective": "objective", "kl": "kl", "neurons": "kept.total"}
    values = {name: row[f"validation.{key}"] for name, key in names.items()}
    return {"number": number, "step": row["step"], **values, "done": done, "decided": decided}


def last_report(record: TrialRecord) -> dict[str, Any]:
    """What Tune is told of a trial that is over."""
    return {"number": record.number, "error": record.error} if record.error else {"number": record.number, "done": True}
