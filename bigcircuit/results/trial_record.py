"""Record of a trial, as trial.json holds it. Light."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigcircuit.config.load import check_key
from bigcircuit.errors import UserError
from bigcircuit.results.shape import Trial, read_shaped

END_STATUSES = ("finished", "stopped", "failed")
"""Statuses of a trial that has ended."""
_JSON_KEYS = {"open_updates": "at_stake", "decided_step": "let_on", "retry_on_resume": "lost"}
"""Attribute -> key of trial.json, where they differ."""


@dataclass
class TrialRecord:
    """Settings, status and progress of a trial."""

    number: int
    drawn: dict[str, Any]
    """Settings that the search has drawn: dotted key -> value."""
    settings: dict[str, Any]
    """Settings now; population-based training changes them."""
    status: str = "waiting"
    """waiting, running, or one of END_STATUSES: finished, stopped early by the scheduler, failed."""
    error: str | None = None
    """Why the trial has failed, in one line."""
    step: int = 0
    """Updates made so far, by the state that the trial continues from."""
    steps: int = 0
    """Updates of the whole trial; 0 before it is opened."""
    seconds: float = 0.0
    """Time in calls to workers; trials that share a call count it in full each."""
    updates: int = 0
    """Updates computed for the trial, including updates that were lost and computed again; of a call that was cut off, as many as
    it can have made."""
    open_updates: int = 0
    """Updates from the last call to the next report or checkpoint, while the trial has a slot: what a call that is cut off can
    have made."""
    validation: dict[str, Any] | None = None
    """Row of the metrics with the last validation."""
    decided_step: int = 0
    """Last step whose report the scheduler has decided on."""
    retry_on_resume: bool = False
    """Whether the next start runs this failed trial again: workers were lost with it, which may have had other causes."""

    @property
    def ended(self) -> bool:
        """Whether the trial makes no more updates."""
        return self.status in END_STATUSES

    def as_json(self) -> dict[str, Any]:
        """Return the content of trial.json."""
        return {_JSON_KEYS.get(name, name): value for name, value in asdict(self).items()}

    @classmethod
    def read(cls, folder: Path) -> "TrialRecord":
        """Read trial.json in the folder of a trial. Raises UserError naming the file if it is not what this project wrote."""
        path, remedy = folder / "trial.json", f"remove {folder} to run this trial again"
        attributes = {key: name for name, key in _JSON_KEYS.items()}
        content = read_shaped(path, remedy, Trial)
        try:
            record = cls(**{attributes.get(key, key): value for key, value in dict(**content).items()})
            keys = [*record.drawn, *record.settings]
        except TypeError as error:
            raise UserError(f"{path}: cannot be read ({error}); {remedy}") from error
        for key in keys:
            check_key(key, str(path))
        return record


def read_trial_records(sweep: Path) -> list[TrialRecord]:
    """Read the records of all trials that have begun, by number; sweep: the sweep's folder. Raises UserError."""
    return sorted(map(TrialRecord.read, trial_folders(sweep)), key=lambda record: record.number)


def trial_folders(sweep: Path) -> list[Path]:
    """Return the folders of the trials that have begun.

    A folder without a JSON file does not count: the sweep was killed before it had written trial.json, its first file.
    """
    return [path for path in (sweep / "trials").glob("[0-9]*") if any(path.glob("*.json"))]
