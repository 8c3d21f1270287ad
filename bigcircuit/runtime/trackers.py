"""Experiment trackers of accelerate: TensorBoard, trackio, wandb. They get the rows of metrics.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any

from bigcircuit.config.extras import EXTRAS, install_command
from bigcircuit.config.load import flatten
from bigcircuit.config.schema import Config
from bigcircuit.errors import UserError
from bigcircuit.io.run_dir import RunDir


class Trackers:
    """Trackers that the config names, none by default; only rank 0 opens them."""

    def __init__(self, config: Config, folder: RunDir) -> None:
        """Open the trackers; see `check_trackers`."""
        self._trackers = [_open(name, config, folder) for name in config.tracking.trackers]
        values = {key: value if isinstance(value, (int, float, str, bool)) else str(value)
                  for key, value in flatten(config.model_dump(mode="json"))}  # fmt: skip
        for tracker in self._trackers:
            tracker.store_init_configuration(values)

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Log the numbers of a step, one row per member; with several members, names begin with the member's name."""
        for row in rows:
            prefix = f"{row['member']}/" if len(rows) > 1 else ""
            numbers = {prefix + key: value for key, value in row.items() if isinstance(value, float)}
            for tracker in self._trackers:
                tracker.log(numbers, step=row["step"])

    def close(self) -> None:
        """Flush and finish all trackers."""
        for tracker in self._trackers:
            tracker.finish()


def check_trackers(config: Config) -> None:
    """Raise UserError, with the command that installs it, where the library of a tracker is missing."""
    if not config.tracking.trackers:
        return
    from accelerate.tracking import get_available_trackers

    known = list(map(str, get_available_trackers()))
    for name in config.tracking.trackers:
        if name not in known:
            command = install_command("tracking") if name in EXTRAS["tracking"] else f"pip install {name}"
            raise UserError(f"tracking.trackers: {name} is not installed; {command}, or remove it")


def _open(name: str, config: Config, folder: RunDir) -> Any:
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState(cpu=True)  # accelerate's trackers need an initialised state
    kind = LOGGER_TYPE_TO_CLASS[name]
    if kind.requires_logging_directory:
        tracker = kind(config.tracking.project, logging_dir=str(folder.path / "tracking"))
    else:
        tracker = kind(config.tracking.project)
    tracker.start()
    return tracker
