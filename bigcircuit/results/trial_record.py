"""What trial.json says of a trial. Light."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigcircuit.errors import UserError

OVER = ("finished", "stopped", "failed")
"""What a trial can have come to."""


@dataclass
class TrialRecord:
    """A trial as trial.json has it."""

    number: int
    drawn: dict[str, Any]
    """The settings the search has chosen: dotted key -> value."""
    settings: dict[str, Any]
    """Those it has now; population-based training changes them."""
    status: str = "waiting"
    """waiting, running, or one of OVER: finished, stopped early by the scheduler, failed."""
    error: str | None = None
    step: int = 0
    steps: int = 0
    """Of how many."""
    seconds: float = 0.0
    """In passes, which it may have shared."""
    updates: int = 0
    """Made for it in all, those included that had to be made again; of a call that was cut off, as many as it can have made."""
    at_stake: int = 0
    """Updates to its next report, while it has a slot."""
    validation: dict[str, Any] | None = None
    """The last one."""
    let_on: int = 0
    """The step of the last report after which Tune has asked for another: it has decided on all up to there."""
    lost: bool = False
    """Whether it has failed because workers were lost with it, which may have had other reasons: the next start tries again."""

    @property
    def over(self) -> bool:
        """Whether it will not go on."""
        return self.status in OVER

    @classmethod
    def read(cls, folder: Path) -> "TrialRecord":
        """Of a trial's folder. Raises UserError naming the file if it is not what this project wrote."""
        path = folder / "trial.json"
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: cannot be read ({error}); remove {folder} to run this trial again") from error


def read_trial_records(sweep: Path) -> list[TrialRecord]:
    """Of all trials in a sweep's folder that have begun, by number. Raises UserError."""
    return sorted(map(TrialRecord.read, trial_folders(sweep)), key=lambda record: record.number)


def trial_folders(sweep: Path) -> list[Path]:
    """Of the trials that have begun; one whose sweep was killed before trial.json was written, first of all, has not."""
    return [path for path in (sweep / "trials").glob("[0-9]*") if any(path.glob("*.json"))]
