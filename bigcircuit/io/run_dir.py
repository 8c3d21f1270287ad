"""Run folders: paths, lock, whether a run may be resumed, config.json and metrics.jsonl."""

import fcntl
import hashlib
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
from bigcircuit.io.files import is_temporary, remove, reporting_disk_errors, write_bytes, write_json
from bigcircuit.io.provenance import versions

CHANGEABLE_ON_RESUME = (
    "output",
    "deepspeed",
    "model.weights",
    "train.checkpointing",
    "train.micro_batch_size",
    "train.store_memory",
    "train.keep_checkpoints",
    "tracking.trackers",
    "tracking.project",
)
"""Settings that do not affect the result. They may differ between a run and its resumption."""
EARLIER = {"train.store": False}
"""Setting -> what was done before it existed, where that is not its default."""


_INPUTS = "inputs"


class RunDir(NamedTuple):
    """Paths of the files of a run."""

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

    @property
    def inputs(self) -> Path:
        """Pairs and model that `bigcircuit.find` was given as objects; they may be there before the run."""
        return self.path / _INPUTS

    @property
    def references(self) -> Path:
        """Reference logits, until the run is finished."""
        return self.path / "references"

    def circuit(self, name: str, members: int) -> Path:
        """Return the path of a member's circuit file. name: of the member; members: their number in the run."""
        return self.path / "circuit.safetensors" if members == 1 else self.path / "circuits" / f"{name}.safetensors"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Make and lock the folder. Raises UserError if another process has locked the folder, or if it cannot be made."""
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
        """Whether the run is complete: the summary is the last file that a run writes."""
        return self.summary.exists()

    @property
    def nothing_to_do(self) -> str:
        """Sentence on a finished run that is started again."""
        return f"{self.path} holds a finished run with these settings; nothing to do (--fresh starts another)"


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UserError(f"{path}: another process is running in this folder; wait for it or use --fresh") from error


def choose_run_dir(config: Config, fresh: bool) -> RunDir:
    """Choose the folder of a run. Raises UserError if the folder is of another run.

    fresh: use the next free name beside `output`. A folder belongs to a run if its resolved config is the same except for
    CHANGEABLE_ON_RESUME.
    """
    folder = RunDir(free_path(config.output) if fresh else Path(config.output))
    _check_usable(folder, config)
    return folder


@contextmanager
def claimed(folder: RunDir, config: Config, command: Sequence[str]) -> Iterator[None]:
    """Lock the folder of a run and write config.json, or check once more that the run there is the same.

    Another process may have used the folder since `choose_run_dir`, while this one read pairs and hashed weights. Raises
    UserError if that was another run, if the run has finished, or if another process has locked the folder.
    """
    with folder.locked():
        _check_usable(folder, config)
        if folder.finished:
            raise UserError(f"{folder.path}: another process has finished this run meanwhile; nothing is left to do")
        write_config(folder, config, command)
        yield


def _check_usable(folder: RunDir, config: Config) -> None:
    """Raises UserError if the folder holds another run, or other files and no run."""
    path = folder.path
    if path.exists() and not path.is_dir():
        raise UserError(f"output {path}: is a file; name a folder")
    if folder.config.exists():
        _check_same(folder, config)
    elif path.is_dir() and not all(is_temporary(other) or other.name == _INPUTS for other in path.iterdir()):
        raise UserError(f"output {path}: the folder holds other files and no run; name another folder")


def free_path(output: str) -> Path:
    """Return the first of `output`, `output-2`, `output-3`, ... that does not exist."""
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
    found = first_difference(
        before, config.model_dump(mode="json"), Config().model_dump(mode="json"), CHANGEABLE_ON_RESUME
    )
    if found is not None:
        key, old, new = found
        raise UserError(
            f"{folder.path}: holds a run with {key} {old!r}, not {new!r}; name another output or use --fresh"
        )


def settings_sha256(config: Config) -> str:
    """Hash the settings that a result depends on: those that are not at their default, but for CHANGEABLE_ON_RESUME.

    A setting that a later version adds is at its default, so that checkpoints of earlier versions keep their hash.
    """
    defaults = dict(flatten(Config().model_dump(mode="json")))
    settings = {
        key: value
        for key, value in flatten(config.model_dump(mode="json"))
        if key not in CHANGEABLE_ON_RESUME and (key not in defaults or defaults[key] != value)
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def first_difference(
    old: Mapping[str, Any], new: Mapping[str, Any], default: Mapping[str, Any], ignored: Collection[str]
) -> tuple[str, Any, Any] | None:
    """Return the first dotted key in which settings differ, with the old and the new value; None if all are equal.

    old: flat settings; new, default: nested. ignored: dotted keys that may differ. A setting that `old` does not have has its
    default, or what EARLIER says was done before the setting existed.
    """
    current, defaults = dict(flatten(new)), dict(flatten(default)) | EARLIER
    before = {key: defaults[key] for key in current.keys() & defaults.keys()} | dict(old)
    keys = (
        key
        for key in sorted(before.keys() | current.keys())
        if key not in ignored and before.get(key) != current.get(key)
    )
    return next(((key, before.get(key), current.get(key)) for key in keys), None)


def write_config(folder: RunDir, config: Config, command: Sequence[str]) -> None:
    """Write config.json: the resolved config, the command and the versions. An existing file is kept."""
    if not folder.config.exists():
        content = {"config": config.model_dump(mode="json"), "command": list(command), "versions": versions()}
        write_json(folder.config, content)


class MetricsFile:
    """The file metrics.jsonl: one line per logged step and member."""

    def __init__(self, folder: RunDir, from_step: int, validated: int) -> None:
        """Open the file for appending and drop the lines that a stopped run wrote after its last checkpoint.

        from_step: last update in the checkpoint. validated: step of the last validation in the checkpoint.
        """
        self._path = folder.metrics
        if self._path.exists():
            lines = self._path.read_bytes().splitlines()
            kept = [line for line in lines if _covered(line, from_step, validated)]
            write_bytes(self._path, b"".join(line + b"\n" for line in kept))

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows and wait until they are on the disk, so that every step in a checkpoint has its lines."""
        with reporting_disk_errors(self._path), self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read the rows of metrics.jsonl written so far; none if there is no such file. A line cut off by a crash is left out."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _covered(line, sys.maxsize, sys.maxsize)]


def _covered(line: bytes, from_step: int, validated: int) -> bool:
    try:
        row = json.loads(line)
        return row["step"] <= (validated if "validation.kl" in row else from_step)
    except (ValueError, KeyError, TypeError):
        return False  # an incomplete line, cut off by a crash
