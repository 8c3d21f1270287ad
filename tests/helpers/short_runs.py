"""Short real runs on the embedded model, shared by several test files."""

from pathlib import Path
from typing import Any

from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.io.run_dir import RunDir
from bigcircuit.prune import prune

QUICK = {
    "task.name": "ioi",
    "task.size": 80,
    "train.steps": 12,
    "train.batch_size": 8,
    "train.log_every": 4,
    "train.validate_every": 6,
    "train.save_every": 6,
    "target.total": 200,
    "ablation.finish_steps": 6,
}
"""Settings of a run of about a second."""
FAST = {"draws": 4, "partial_draws": 1, "fractions": [0.5], "groups": 4, "methods": "random", "levels": "head"}
"""Options of an evaluation of a few seconds."""


def run(output: Path, **overrides: Any) -> RunDir:
    """Prune the embedded model for a few steps; overrides: dotted keys with `__` for the dot."""
    values = {key.replace("__", "."): value for key, value in overrides.items()}
    return prune(load(None, {**QUICK, "output": str(output), **values}), Ranks())
