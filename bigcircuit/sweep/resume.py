"""What the folder of a sweep holds when its command is given: nothing, the same sweep so far or at its end, or another one."""

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
from bigcircuit.io.run_dir import RESUMABLE, first_difference
from bigcircuit.results.sweep import is_sweep
from bigcircuit.results.trial_record import read_trial_records
from bigcircuit.sweep.config import Sweep, SweepSettings
from bigcircuit.sweep.search import trial_count

_HOW = ("workers", "ranks", "cpus", "gpus", "slots")
"""Settings of a sweep that do not change what it finds."""


def sweep_json(asked: Sweep) -> dict[str, Any]:
    """The content of sweep.json."""
    return {
        "config": asked.config.model_dump(mode="json"),
        "sweep": asked.settings.model_dump(mode="json"),
        "command": list(sys.argv),
        "versions": versions() | {"ray": version("ray")},
    }


def replaces_other_sweep(folder: Path, asked: Sweep) -> bool:
    """Whether the folder holds another sweep, which has not made a single update and so may be replaced.

    Raises UserError where another one has begun there, or it holds something else.
    """
    if not is_sweep(folder):
        if folder.is_dir() and not all(map(is_temporary, folder.iterdir())):
            raise UserError(f"output {folder}: the folder holds other files and no sweep; name another folder")
        return False
    found = _difference(folder, asked)
    if found is None:
        return False
    if not has_begun(folder):
        return True
    raise UserError(f"{folder}: holds a sweep with {found}; name another output or use --fresh")


def _difference(folder: Path, asked: Sweep) -> str | None:
    """The first setting in which the sweep of a folder is another one, in words."""
    try:
        before = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
        old = [dict(flatten(before[part])) for part in ("config", "sweep")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder / 'sweep.json'}: not a sweep's; name another output or use --fresh") from error
    now = json.loads(json.dumps(sweep_json(asked)))
    usual: list[Mapping[str, Any]] = [Config().model_dump(mode="json"), _usual()]
    for part, values, default, leave in zip(("config", "sweep"), old, usual, (RESUMABLE, _HOW), strict=True):
        found = first_difference(values, now[part], default, leave)
        if found is not None:
            key, one, other = found
            return f"{'sweep.' if part == 'sweep' else ''}{key} {one!r}, not {other!r}"
    return None


def _usual() -> dict[str, Any]:
    """What the section `sweep` has by default."""
    return {name: info.default for name, info in SweepSettings.model_fields.items() if not info.is_required()}


def has_begun(folder: Path) -> bool:
    """Whether any trial has made an update."""
    return any(record.updates for record in read_trial_records(folder))


def trials_left(folder: Path, asked: Sweep) -> int:
    """How many trials are not over, those included that the next start tries again."""
    return trial_count(asked.settings) - sum(record.over and not record.lost for record in read_trial_records(folder))
