"""Compare a sweep with its output folder: may it resume what is there, replace it, or is nothing left to do."""

import json
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bigcircuit.config.load import flatten
from bigcircuit.config.schema import Config
from bigcircuit.errors import UserError
from bigcircuit.io.files import is_temporary
from bigcircuit.io.provenance import versions
from bigcircuit.io.run_dir import CHANGEABLE_ON_RESUME, first_difference
from bigcircuit.results.sweep import is_sweep
from bigcircuit.results.trial_record import read_trial_records
from bigcircuit.sweep.config import Sweep, SweepSettings
from bigcircuit.sweep.search import trial_count

_SWEEP_CHANGEABLE = ("workers", "ranks", "cpus", "gpus", "slots")
"""Settings of the section `sweep` that do not affect the result; they may differ between a sweep and its resumption."""


def sweep_json(sweep: Sweep) -> dict[str, Any]:
    """Return the content of sweep.json."""
    return {
        "config": sweep.config.model_dump(mode="json"),
        "sweep": sweep.settings.model_dump(mode="json"),
        "command": list(sys.argv),
        "versions": versions() | {"ray": version("ray")},
    }


def replaces_other_sweep(folder: Path, sweep: Sweep) -> bool:
    """Return whether the folder holds another sweep that may be replaced, since it has not made a single update.

    Raises UserError where another sweep has made updates there, or the folder holds other files.
    """
    if not is_sweep(folder):
        if folder.is_dir() and not all(map(is_temporary, folder.iterdir())):
            raise UserError(f"output {folder}: the folder holds other files and no sweep; name another folder")
        return False
    difference = _difference(folder, sweep)
    if difference is None:
        return False
    if not has_begun(folder):
        return True
    raise UserError(f"{folder}: holds a sweep with {difference}; name another output or use --fresh")


def _difference(folder: Path, sweep: Sweep) -> str | None:
    """Describe the first setting in which the sweep of a folder differs; None if there is none. Raises UserError."""
    try:
        before = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        old = [dict(flatten(before[part])) for part in ("config", "sweep")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'sweep.json'}: not a sweep's; name another output or use --fresh") from error
    now = json.loads(json.dumps(sweep_json(sweep)))
    defaults: list[Mapping[str, Any]] = [Config().model_dump(mode="json"), _defaults()]
    changeable = (CHANGEABLE_ON_RESUME, _SWEEP_CHANGEABLE)
    for part, values, default, ignored in zip(("config", "sweep"), old, defaults, changeable, strict=True):
        found = first_difference(values, now[part], default, ignored)
        if found is not None:
            key, one, other = found
            return f"{'sweep.' if part == 'sweep' else ''}{key} {one!r}, not {other!r}"
    return None


def _defaults() -> dict[str, Any]:
    """Return the defaults of the section `sweep`."""
    return {name: info.default for name, info in SweepSettings.model_fields.items() if not info.is_required()}


def has_begun(folder: Path) -> bool:
    """Return whether any trial of a sweep's folder has made an update."""
    return any(record.updates for record in read_trial_records(folder))


def trials_left(folder: Path, sweep: Sweep) -> int:
    """Return the number of trials that have not ended, including failed trials that the next start retries."""
    ended = sum(record.ended and not record.retry_on_resume for record in read_trial_records(folder))
    return trial_count(sweep.settings) - ended
