"""Folder of a sweep as values: its settings, and record and results of every trial so far. Loads no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bigcircuit.errors import UserError
from bigcircuit.io.files import Json
from bigcircuit.results.pareto import pareto
from bigcircuit.results.shape import Summary, SweepSetup, read_shaped
from bigcircuit.results.trial_record import TrialRecord, trial_folders

_RESTORE = "restore it from a copy"


@dataclass(frozen=True, eq=False)
class SweepTrial:
    """One trial: its folder, record and, once it has finished, its summary."""

    folder: Path
    record: TrialRecord
    summary: Json | None
    """Content of summary.json; None unless the trial has finished."""

    @property
    def number(self) -> int:
        """Number of the trial within its sweep, from 0."""
        return self.record.number

    @property
    def result(self) -> Json:
        """Content of summary.json; for finished trials only."""
        assert self.summary is not None
        return self.summary

    @property
    def row(self) -> Json:
        """Row of summary.json that describes the trial's circuit; for finished trials only."""
        return self.result["members"][0]

    @property
    def circuit(self) -> Path:
        """Path of the circuit file; for finished trials only."""
        return self.folder / self.row["circuit"]

    @property
    def point(self) -> tuple[int, float]:
        """Neurons kept, and held-out KL in nats; for finished trials only."""
        return self.row["kept"]["total"], self.row["scores"]["kl"]["mean"]

    @property
    def last_validation(self) -> dict[str, Any]:
        """Last validation: score, or `kept.<granularity>`, -> value; empty before the first validation."""
        found = self.record.validation or {}
        return {key.removeprefix("validation."): value for key, value in found.items() if key.startswith("validation.")}


@dataclass(frozen=True)
class SweepResult:
    """A sweep so far: its settings and its trials."""

    path: Path
    base: Json
    """Config of all trials but for the searched settings."""
    search: Json
    """Section `sweep` of the config: what is searched, and how."""
    command: Sequence[str]
    versions: Mapping[str, str]
    trials: Sequence[SweepTrial]
    """Trials that have begun, by number."""

    @property
    def finished(self) -> list[SweepTrial]:
        """Trials that have finished: with a circuit and held-out scores."""
        return [trial for trial in self.trials if trial.summary is not None]

    @cached_property
    def front(self) -> list[SweepTrial]:
        """Pareto front: finished trials that no other trial dominates in neurons and held-out KL, the smallest first."""
        found = self.finished
        return [found[index] for index in pareto([trial.point for trial in found])]

    @property
    def searched(self) -> list[str]:
        """Dotted keys of the searched settings, in order."""
        return list(dict.fromkeys(key for trial in self.trials for key in trial.record.settings)) or [
            *self.search.get("space", {})
        ]


def is_sweep(path: Path) -> bool:
    """Return whether a folder is the output of a sweep."""
    return (path / "sweep.json").is_file()


def read_sweep(path: Path) -> SweepResult:
    """Read the folder of a sweep. Raises UserError naming the folder if it holds no sweep, or the file that is damaged."""
    if not is_sweep(path):
        raise UserError(f"{path}: holds no sweep (no sweep.json); name the folder that `bigcircuit sweep` wrote")
    content = read_shaped(path / "sweep.json", _RESTORE, SweepSetup)
    trials = [_trial(folder) for folder in trial_folders(path)]
    trials.sort(key=lambda trial: trial.number)
    return SweepResult(
        path=path,
        base=content["config"],
        search=content["sweep"],
        command=content["command"],
        versions=content["versions"],
        trials=trials,
    )


def _trial(folder: Path) -> SweepTrial:
    record = TrialRecord.read(folder)
    if record.status != "finished":
        return SweepTrial(folder, record, None)
    summary = read_shaped(folder / "summary.json", _RESTORE, Summary)
    trial = SweepTrial(folder, record, summary)
    try:
        _ = trial.point, trial.circuit
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(
            f"{folder / 'summary.json'}: says nothing of its circuit; remove {folder} to run it again"
        ) from error
    return trial
