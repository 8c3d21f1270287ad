"""Write files atomically: after a crash a file has either its old or its new content."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from bigcircuit.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to load, and many modules that write files do not need it
    from torch import Tensor

_TEMPORARY = ".bigcircuit.tmp"
"""How names of files end that are being written."""

Json = Mapping[str, Any]
"""A JSON object as it was read."""


_hashes: dict[tuple[Path, int, int], str] = {}
"""Path, size and time of change of a file -> its sha256."""


def file_sha256(path: Path, on_bytes: Callable[[int], None] = lambda _: None) -> str:
    """Return the hex sha256 of a file; a file that has not changed is not read again.

    on_bytes: called with the number of bytes hashed since the call before; it may raise an exception to stop.
    """
    now = path.stat()
    key = path, now.st_size, now.st_mtime_ns
    if key in _hashes:
        on_bytes(now.st_size)
        return _hashes[key]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
            on_bytes(len(chunk))
    _hashes[key] = digest.hexdigest()
    return _hashes[key]


def files_sha256(paths: Sequence[Path], on_bytes: Callable[[int], None] = lambda _: None) -> list[str]:
    """Return the hex sha256 of each file, two at a time. on_bytes: see `file_sha256`; called from two threads."""
    stopped = threading.Event()

    def count(size: int) -> None:
        if stopped.is_set():
            raise InterruptedError
        on_bytes(size)

    with ThreadPoolExecutor(2) as pool:  # hashlib and reading release the interpreter's lock
        try:
            return list(pool.map(lambda path: file_sha256(path, count), paths))
        except BaseException:
            stopped.set()  # a signal does not wait for gigabytes
            raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: to a temporary name beside `path`, then sync and rename. Raises UserError if writing fails."""
    temporary = temporary_path(path)
    with reporting_disk_errors(path), removing(temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(temporary, content)
        temporary.replace(path)
        sync_dir(path.parent)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file, not atomically, and wait until its content is on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def reporting_disk_errors(path: Path, remedy: str = "free space or choose another output") -> Iterator[None]:
    """Turn an OSError inside into a UserError that names the file and the remedy."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); {remedy}") from error


def check_writable(folder: Path) -> None:
    """Make a folder, write a file in it and remove the file. Raises UserError if that fails."""
    temporary = temporary_path(folder / "test")
    with reporting_disk_errors(folder), removing(temporary):
        folder.mkdir(parents=True, exist_ok=True)
        write_synced(temporary, b"")


def temporary_path(path: Path, owner: int | None = None) -> Path:
    """Return the temporary name from which a file or folder is to be renamed to `path`.

    owner: number by which the processes that share the file know it; by default that of this process.
    """
    return path.with_name(f".{path.name}.{os.getpid() if owner is None else owner}{_TEMPORARY}")


def is_temporary(path: Path) -> bool:
    """Return whether a path has a temporary name: a crash left it half written, or a process is writing it now.

    No other program makes such names, so that what has one can be removed.
    """
    return re.fullmatch(rf"\..+\.[0-9]+{re.escape(_TEMPORARY)}", path.name, re.DOTALL) is not None


def remove_leftovers(path: Path) -> None:
    """Remove what has a temporary name of `path`, but for that of another process that lives on this host."""
    for found in filter(is_temporary, path.parent.glob(f".{glob.escape(path.name)}.*")):
        owner = int(found.name.removesuffix(_TEMPORARY).rpartition(".")[2])
        if owner == os.getpid() or not psutil.pid_exists(owner):
            remove(found)


@contextmanager
def removing(temporary: Path) -> Iterator[None]:
    """Remove the file or folder of this name at the end, also after an error."""
    try:
        yield
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or folder if it exists; errors of the disk are ignored."""
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def read_json(path: Path, remedy: str, *keys: str) -> Any:
    """Read a JSON file. Raises UserError naming the file and the remedy if it cannot be read or lacks one of `keys`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if missing := [key for key in keys if key not in content]:
            raise ValueError(f"it has no {missing[0]}")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {remedy}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); {remedy}") from error
    return content


def parse_json(text: str | bytes) -> Any:
    """Parse JSON. Raises ValueError also for an object with the same key twice, of which json keeps the last in silence."""
    return json.loads(text, object_pairs_hook=_distinct)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(twice, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"an object has the key {twice!r:.60} more than once")
    return found


def write_json(path: Path, content: Any) -> None:
    """Write plain data as indented JSON, atomically. NaN and infinity, which JSON does not have, become null."""
    write_bytes(path, (json.dumps(_finite(content), indent=2, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors as safetensors, atomically; the same content gives the same bytes."""
    write_bytes(path, tensors_to_bytes(tensors, metadata))


def tensors_to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Return the content of a safetensors file."""
    from safetensors.torch import save

    data = save({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, None)
    return _with_metadata(data, metadata) if metadata else data


def sync_dir(path: Path) -> None:
    """Wait until the names in a folder are on the disk: a rename is only in memory until its folder is synced."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """Add metadata to a safetensors header in sorted order: the library's own order changes from run to run."""
    length = int.from_bytes(data[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(data[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def tensor_sha256(tensor: Tensor) -> str:
    """Return the hex sha256 of a tensor's raw little-endian bytes; safetensors itself does not notice a flipped bit."""
    import torch

    # As bytes, because numpy lacks bfloat16 and float8; flat, because a tensor without dimensions has no view as bytes.
    content = tensor.detach().contiguous().cpu().flatten().view(torch.uint8)
    return hashlib.sha256(content.numpy().tobytes()).hexdigest()
