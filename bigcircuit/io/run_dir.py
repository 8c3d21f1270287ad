"""The run folder: what is in it, whether a run may go on in it, and its metrics file."""

import fcntl
import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bigcircuit.config.load import flatten
from bigcircuit.config.schema import Config
from bigcircuit.errors import UserError
from bigcircuit.io.files import disk_errors, is_temporary, remove, write_bytes, write_json
from bigcircuit.io.provenance import versions

RESUMABLE = (
    "output",
    "deepspeed",
    "train.checkpointing",
    "train.micro_batch_size",
    "train.keep_checkpoints",
    "tracking.trackers",
    "tracking.project",
)
"""Settings of how a run is made and not of what it finds; a run that was stopped may go on with others."""


class RunDir(NamedTuple):
    """Paths of one run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def examples(self) -> Path:
        return self.path / "examples.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def circuit(self, name: str, members: int) -> Path:
        """File of one member's circuit."""
        return self.path / "circuit.safetensors" if members == 1 else self.path / "circuits" / f"{name}.safetensors"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process. Raises UserError if another one holds it, or if it cannot be made."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise UserError(f"output {self.path}: cannot be made ({error.strerror}); name another output") from error
        try:
            _lock(handle, self.path)
            for path in filter(is_temporary, self.path.rglob(".*")):
                remove(path)
            yield
        finally:
            os.close(handle)

    @property
    def finished(self) -> bool:
        """The summary is the last file a run writes."""
        return self.summary.exists()


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{path}: another process is running in this folder; wait for it or use --fresh") from error


def choose_run_dir(config: Config, fresh: bool) -> RunDir:
    """The folder of this run; with `fresh` the next free name beside `output`. Raises UserError for another run's folder.

    A folder belongs to a run when its resolved config is the same apart from `output`.
    """
    path = free_path(config.output) if fresh else Path(config.output)
    folder = RunDir(path)
    if path.exists() and not path.is_dir():
        raise UserError(f"output {path}: is a file; name a folder")
    if folder.config.exists():
        _check_same(folder, config)
    elif path.is_dir() and not all(map(is_temporary, path.iterdir())):
        raise UserError(f"output {path}: the folder holds other files and no run; name another folder")
    return folder


def free_path(output: str) -> Path:
    """The first of `output`, `output-2`, `output-3`, ... that does not exist."""
    path, taken = Path(output), 1
    while path.exists():
        taken += 1
        path = Path(f"{output}-{taken}")
    return path


def _check_same(folder: RunDir, config: Config) -> None:
    try:
        before = dict(flatten(json.loads(folder.config.read_text(encoding="utf-8"))["config"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder.config}: not a run's config.json; name another output or use --fresh") from error
    found = first_difference(before, config.model_dump(mode="json"), Config().model_dump(mode="json"), RESUMABLE)
    if found is not None:
        key, old, new = found
        raise UserError(
            f"{folder.path}: holds a run with {key} {old!r}, not {new!r}; name another output or use --fresh"
        )


def first_difference(
    old: Mapping[str, Any], now: Mapping[str, Any], default: Mapping[str, Any], leave: Collection[str]
) -> tuple[str, Any, Any] | None:
    """The first dotted key but those of `leave` in which settings have changed, with both values.

    old: flat; now and default: nested. A setting that did not exist then had, as its default, what was done then.
    """
    new, usual = dict(flatten(now)), dict(flatten(default))
    old = {key: usual[key] for key in new.keys() & usual.keys()} | dict(old)
    keys = (key for key in sorted(old.keys() | new.keys()) if key not in leave and old.get(key) != new.get(key))
    return next(((key, old.get(key), new.get(key)) for key in keys), None)


def write_config(folder: RunDir, config: Config, command: Sequence[str]) -> None:
    """Write config.json: the resolved config, the command and the versions; an existing one is left as it is."""
    if not folder.config.exists():
        content = {"config": config.model_dump(mode="json"), "command": list(command), "versions": versions()}
        write_json(folder.config, content)


class MetricsFile:
    """metrics.jsonl: one line a logged step and member."""

    def __init__(self, folder: RunDir, from_step: int, validated: int) -> None:
        """Lines that a stopped run wrote after its last checkpoint are dropped: of updates after `from_step`, and of
        validations after `validated`.
        """
        self._path = folder.metrics
        if self._path.exists():
            lines = self._path.read_bytes().splitlines()
            kept = [line for line in lines if _covered(line, from_step, validated)]
            write_bytes(self._path, b"".join(line + b"\n" for line in kept))

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows and wait until they are on the disk: no checkpoint is to know of a step that has no line."""
        with disk_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())

    @staticmethod
    def read_from(folder: RunDir) -> list[dict[str, Any]]:
        """All rows so far."""
        if not folder.metrics.exists():
            return []
        lines = folder.metrics.read_bytes().splitlines()
        return [json.loads(line) for line in lines if _covered(line, sys.maxsize, sys.maxsize)]


def _covered(line: bytes, from_step: int, validated: int) -> bool:
    try:
        row = json.loads(line)
        return row["step"] <= (validated if "validation.kl" in row else from_step)
    except (ValueError, KeyError, TypeError):
        return False  # half a line, cut off by a crash
