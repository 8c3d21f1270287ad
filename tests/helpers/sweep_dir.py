"""Folder of a sweep as `bigcircuit sweep` writes it, made of short real prunes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigcircuit.config.load import load
from bigcircuit.io.files import write_json
from bigcircuit.io.provenance import versions
from bigcircuit.io.run_dir import RunDir
from tests.helpers.short_runs import QUICK, run

SHORT = {"task.size": 40, "train.steps": 4, "train.validate_every": 2, "train.log_every": 2, "target.total": None}
TRIALS: list[dict[str, Any]] = [
    {"train.lr": 0.1, "train.seed": 0, "target.total": 300},
    {"train.lr": 0.1, "train.seed": 0, "target.total": 60},
    {"train.lr": 0.1, "train.seed": 1, "target.total": 900},
    {"train.lr": 0.3, "train.seed": 1, "target.total": 300},
    {"train.lr": 0.3, "train.seed": 2, "target.total": 1400},
]
"""Settings of the trials that finish."""
OTHERS: list[dict[str, Any]] = [
    {"status": "stopped", "settings": {"train.lr": 1.0, "train.seed": 0, "target.total": 600}, "step": 2},
    {
        "status": "failed",
        "settings": {"train.lr": 0.1, "train.seed": 0, "target.total": 5000},
        "error": "ask for fewer",
    },
    {"status": "waiting", "settings": {"train.lr": 0.1, "train.seed": 3, "target.total": 80}},
]
"""Records of the trials that do not: one is stopped early, one fails, one waits."""
SPACE = {"train.lr": {"log_uniform": [0.05, 1.0]}, "train.seed": [0, 1, 2], "target.total": [60, 300, 900, 1400]}


def make_sweep(folder: Path) -> Path:
    """Make the folder with its trials, without tables, front and page."""
    config = load(None, {**QUICK, **SHORT, "output": str(folder)})
    search = {"space": SPACE, "search": "random", "trials": 8, "seed": 0, "scheduler": "asha", "metric": "objective"}
    write_json(folder / "sweep.json", {"config": config.model_dump(mode="json"), "sweep": search,
                                       "command": ["bigcircuit", "sweep"], "versions": versions()})  # fmt: skip
    for number, settings in enumerate(TRIALS):
        own = {key.replace(".", "__"): value for key, value in {**SHORT, **settings}.items()}
        made = run(folder / f"trials/{number:03d}", **own)
        made.report.unlink()
        seen = [row for row in map(json.loads, made.metrics.read_text().splitlines()) if "validation.kl" in row]
        write_trial(
            folder, number, settings, status="finished", step=4, steps=4, seconds=1.5, updates=4, validation=seen[-1]
        )
    for number, other in enumerate(OTHERS, start=len(TRIALS)):
        seen = {"validation.kl": 0.5, "validation.kept.total": 700, "validation.kept.head": 20, "step": 2}
        write_trial(folder, number, steps=4, **{"validation": seen if other["status"] == "stopped" else None, **other})
    return folder


def write_trial(folder: Path, number: int, settings: Mapping[str, Any], **keys: Any) -> None:
    """Write trial.json; keys: further keys of the file, which may leave out those with defaults."""
    record = {"number": number, "drawn": settings, "settings": settings, **keys}
    write_json(folder / f"trials/{number:03d}/trial.json", record)


def trial_folder(folder: Path, number: int) -> RunDir:
    """Return the run folder of a trial."""
    return RunDir(folder / f"trials/{number:03d}")
