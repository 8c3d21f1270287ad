"""Write a Hugging Face folder tensor by tensor: two tensors, and no shard, are in memory at a time."""

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigcircuit.io.files import reporting_disk_errors, sync_dir
from bigcircuit.model.fingerprint import TOKENIZER_FILES
from bigcircuit.model.weight_files import INDEX, WEIGHTS

SHARD = 4 << 30
"""Bytes of tensors that a file holds at most, but for a larger tensor alone."""
_NAMES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_CHUNK = 1 << 24
"""Bytes that are written by one call."""
_CANNOT_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF)
"""What the system answers where it cannot copy between two files."""
BESIDE_WEIGHTS = (
    *TOKENIZER_FILES,
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
"""Patterns of the files of a model folder that an export takes over as they are."""


class FilePiece(NamedTuple):
    """Bytes of a tensor in a file."""

    path: Path
    start: int
    bytes: int


def file_pieces(path: Path) -> dict[str, FilePiece]:
    """Find where the tensors of a safetensors file are."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    return {name: FilePiece(path, 8 + length + start, end - start) for name, (start, end) in spans.items()}


class Planned(NamedTuple):
    """A tensor that is going to be written."""

    name: str
    size: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]
    piece: FilePiece | None = None
    """Where the same bytes are in a file: they are copied by the system and never are in memory. None for a tensor to make."""

    @property
    def bytes(self) -> int:
        """Size in a file."""
        return torch.Size(self.size).numel() * self.dtype.itemsize


def write_weights(folder: Path, tensors: Sequence[Planned], advance: Callable[[int], None], shard: int = SHARD) -> None:
    """Write tensors as one safetensors file, or as several with an index.

    shard: bytes of a file; advance: is called with the number of bytes written since the call before. Raises UserError if the disk
    is full.
    """
    files = list(_divided(tensors, shard))
    names = [WEIGHTS] if len(files) == 1 else [_shard_name(number, len(files)) for number in range(1, len(files) + 1)]
    # A file goes to the disk while the next is written.
    with ThreadPoolExecutor(1) as pool:
        syncs = [
            pool.submit(_sync, folder / name, _write_file(folder / name, held, advance))
            for name, held in zip(names, files, strict=True)
        ]
        for one in syncs:
            one.result()
    if len(files) > 1:
        index = {
            "metadata": {"total_size": sum(one.bytes for one in tensors)},
            "weight_map": {one.name: name for name, held in zip(names, files, strict=True) for one in held},
        }
        write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def _shard_name(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def _divided(tensors: Sequence[Planned], shard: int) -> Iterator[list[Planned]]:
    """Divide tensors, in their order, into files of at most so many bytes."""
    held: list[Planned] = []
    for one in tensors:
        if held and sum(other.bytes for other in held) + one.bytes > shard:
            yield held
            held = []
        held.append(one)
    yield held


def _write_file(path: Path, tensors: Sequence[Planned], advance: Callable[[int], None]) -> int:
    """Write one safetensors file. Larger numbers come first, which keeps all aligned, as the library does it.

    Returns a descriptor of the file, which `_sync` closes.
    """
    ordered = sorted(tensors, key=lambda one: (-one.dtype.itemsize, one.name))
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for one in ordered:
        header[one.name] = {
            "dtype": _NAMES[one.dtype],
            "shape": list(one.size),
            "data_offsets": [end, end + one.bytes],
        }
        end += one.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    # The next tensor is made while one is written: torch and the system release the interpreter's lock.
    with reporting_disk_errors(path), path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        _write_all(file, memoryview(len(text).to_bytes(8, "little") + text), lambda _: None)
        made = (pool.submit(one.make) for one in ordered if one.piece is None)
        following = next(made, None)
        for one in ordered:
            if one.piece is not None:
                assert one.piece.bytes == one.bytes, f"{one.name} has {one.piece.bytes} bytes, not {one.bytes}"
                _copy_piece(file, one.piece, advance)
                continue
            assert following is not None, "one for each tensor without a piece"
            tensor, following = following.result().to(one.dtype).contiguous(), next(made, None)
            assert tuple(tensor.shape) == one.size, f"{one.name} is {tuple(tensor.shape)}, not {one.size}"
            content: Any = tensor.flatten().view(torch.uint8).numpy()
            _write_all(file, content.data, advance)
        return os.dup(file.fileno())


def _sync(path: Path, descriptor: int) -> None:
    """Wait until a written file is on the disk, and close its descriptor. Raises UserError if the disk is full."""
    try:
        with reporting_disk_errors(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(file: Any, content: memoryview, advance: Callable[[int], None]) -> None:
    """Write bytes to an unbuffered file."""
    place = 0
    while place < len(content):
        written = file.write(content[place : place + _CHUNK])
        place += written
        advance(written)


def _copy_piece(file: Any, piece: FilePiece, advance: Callable[[int], None]) -> None:
    """Copy bytes of one file to the end of another by the system, or in chunks where the system cannot. Raises OSError."""
    with piece.path.open("rb", buffering=0) as source:
        place, end = piece.start, piece.start + piece.bytes
        while place < end:
            size = min(_CHUNK, end - place)
            try:
                copied = os.copy_file_range(source.fileno(), file.fileno(), size, place)
            except (OSError, AttributeError) as error:
                if isinstance(error, OSError) and error.errno not in _CANNOT_COPY:
                    raise
                copied = os.write(file.fileno(), os.pread(source.fileno(), size, place))
            if not copied:
                raise OSError(errno.EIO, f"{piece.path} ends before its last tensor")
            place += copied
            advance(copied)


def write_text(path: Path, text: str) -> None:
    """Write a text file of a folder that is not in its place yet, and wait until its content is on the disk."""
    with reporting_disk_errors(path), path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def copy_beside(source: Path | None, folder: Path) -> list[str]:
    """Copy tokenizer, generation settings and licences of a model folder; returns the names of the copied files."""
    found = {path for pattern in BESIDE_WEIGHTS for path in source.glob(pattern)} if source else set()
    for path in sorted(found):
        if path.is_file():
            with reporting_disk_errors(folder / path.name):
                shutil.copyfile(path, folder / path.name)
    sync_dir(folder)
    return sorted(path.name for path in found if path.is_file())
