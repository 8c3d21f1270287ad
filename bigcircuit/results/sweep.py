"""A sweep as its folder has it: what was asked, and how far every trial has come. Loads no torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bigcircuit.errors import UserError
from bigcircuit.results.pareto import pareto
from bigcircuit.results.trial_record import TrialRecord, trial_folders

Json = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class SweepTrial:
    """One setting of the search, and what came of it."""

    folder: Path
    record: TrialRecord
    summary: Json | None
    """Of its run folder; None unless it has finished."""

    @property
    def number(self) -> int:
        return self.record.number

    @property
    def row(self) -> Json:
        """Its circuit, as a row of summary.json; for finished trials only."""
        assert self.summary is not None
        return self.summary["members"][0]

    @property
    def circuit(self) -> Path:
        """Its circuit file."""
        return self.folder / self.row["circuit"]

    @property
    def point(self) -> tuple[int, float]:
        """Neurons kept and held-out KL."""
        return self.row["kept"]["total"], self.row["scores"]["kl"]["mean"]

    @property
    def validated(self) -> dict[str, Any]:
        """Its last validation: score, or `kept.<granularity>`, -> value; empty before the first one."""
        found = self.record.validation or {}
        return {key.removeprefix("validation."): value for key, value in found.items() if key.startswith("validation.")}


@dataclass(frozen=True)
class SweepResult:
    """All of a sweep so far."""

    path: Path
    base: Json
    """The config that all trials start from."""
    search: Json
    """The section `sweep`."""
    command: Sequence[str]
    versions: Mapping[str, str]
    trials: Sequence[SweepTrial]
    """By number."""

    @property
    def finished(self) -> list[SweepTrial]:
        """Those with a circuit and held-out scores."""
        return [trial for trial in self.trials if trial.summary is not None]

    @cached_property
    def front(self) -> list[SweepTrial]:
        """Finished trials that no other beats in both size and KL, the smallest first."""
        found = self.finished
        return [found[index] for index in pareto([trial.point for trial in found])]

    @property
    def searched(self) -> list[str]:
        """The keys of the settings that were searched, in order."""
        return list(dict.fromkeys(key for trial in self.trials for key in trial.record.settings)) or [
            *self.search.get("space", {})
        ]


def is_sweep(path: Path) -> bool:
    """Whether a folder is that of a sweep."""
    return (path / "sweep.json").is_file()


def read_sweep(path: Path) -> SweepResult:
    """Read a sweep's folder. Raises UserError naming the folder or file that is no sweep's, or damaged."""
    if not is_sweep(path):
        raise UserError(f"{path}: holds no sweep (no sweep.json); name the folder that `bigcircuit sweep` wrote")
    said = _read(path / "sweep.json", "config", "sweep", "command", "versions")
    trials = [_trial(folder) for folder in trial_folders(path)]
    trials.sort(key=lambda trial: trial.number)
    return SweepResult(path, said["config"], said["sweep"], said["command"], said["versions"], trials)


def _trial(folder: Path) -> SweepTrial:
    record = TrialRecord.read(folder)
    if record.status != "finished":
        return SweepTrial(folder, record, None)
    trial = SweepTrial(folder, record, _read(folder / "summary.json", "members", "nodes", "full", "empty"))
    try:
        _ = trial.point, trial.circuit
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"{folder / 'summary.json'}: says nothing of its circuit; remove {folder} to run it again"
        ) from error
    return trial


def _read(path: Path, *keys: str) -> Json:
    """A JSON file with these keys."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if missing := [key for key in keys if key not in found]:
            raise ValueError(f"it has no {missing[0]}")
    except (OSError, ValueError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({reason}); restore it from a copy") from error
    return found
