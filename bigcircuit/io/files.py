"""Write files so that a crash leaves either the old one or the new one, never a half."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigcircuit.errors import UserError

if TYPE_CHECKING:  # torch takes seconds to load, and not everybody who writes files needs it
    from torch import Tensor


def file_sha256(path: Path) -> str:
    """Hex digest of a file; one that has not changed is not read twice."""
    now = path.stat()
    return _file_sha256(path, now.st_size, now.st_mtime_ns)


@cache
def _file_sha256(path: Path, *_: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def write_bytes(path: Path, content: bytes) -> None:
    """Write to a temporary name beside `path`, sync, rename. Raises UserError when the disk refuses."""
    temporary = temporary_beside(path)
    with disk_errors(path), removed_after(temporary):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_synced(temporary, content)
        temporary.replace(path)
        sync_dir(path.parent)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until it is on the disk; for a place where nobody looks for it yet."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Raises UserError, naming the file, when the disk refuses what is done inside."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space or choose another output") from error


def check_writable(folder: Path) -> None:
    """Make a folder, and a file in it that is gone again. Raises UserError when the disk refuses."""
    temporary = temporary_beside(folder / "test")
    with disk_errors(folder), removed_after(temporary):
        folder.mkdir(parents=True, exist_ok=True)
        write_synced(temporary, b"")


def temporary_beside(path: Path) -> Path:
    """Where to write what is to be renamed to `path`."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether a crash has left this half written, if no process is writing it now."""
    return path.match(".*.[0-9]*.tmp")


@contextmanager
def removed_after(temporary: Path) -> Iterator[None]:
    """At the end a file or folder of this name is gone, whatever happens inside."""
    try:
        yield
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Remove a file or folder if it is there and the disk lets us."""
    with suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write plain data as indented JSON, atomically. NaN and infinity, which JSON has no word for, become null."""
    write_bytes(path, (json.dumps(_finite(content), indent=2, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors as safetensors, atomically; the same content gives the same bytes."""
    write_bytes(path, tensors_to_bytes(tensors, metadata))


def tensors_to_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Content of a safetensors file."""
    from safetensors.torch import save

    data = save({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, None)
    return _with_metadata(data, metadata) if metadata else data


def sync_dir(path: Path) -> None:
    """Make the names in a folder last: a rename is only in memory until its folder is synced."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _with_metadata(data: bytes, metadata: Mapping[str, str]) -> bytes:
    """Put metadata into a safetensors header in sorted order: the library's own order changes from run to run."""
    length = int.from_bytes(data[:8], "little")
    header = {"__metadata__": dict(sorted(metadata.items())), **json.loads(data[8 : 8 + length])}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + length :]


def tensor_sha256(tensor: Tensor) -> str:
    """sha256 of a tensor's raw little-endian bytes; safetensors itself does not notice a flipped bit."""
    return hashlib.sha256(tensor.detach().contiguous().cpu().numpy().tobytes()).hexdigest()
