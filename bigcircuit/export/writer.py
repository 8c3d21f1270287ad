"""Write a Hugging Face folder tensor by tensor: two tensors, and no shard, are in memory at a time."""

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
BESIDE_WEIGHTS = (
    *TOKENIZER_FILES,
    "chat_template*",
    "generation_config.json",
    "LICENSE*",
    "NOTICE*",
    "USE_POLICY*",
)
"""Patterns of the files of a model folder that an export takes over as they are."""


class Planned(NamedTuple):
    """A tensor that is going to be written."""

    name: str
    size: tuple[int, ...]
    dtype: torch.dtype
    make: Callable[[], Tensor]

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
    for name, held in zip(names, files, strict=True):
        _write_file(folder / name, held, advance)
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


def _write_file(path: Path, tensors: Sequence[Planned], advance: Callable[[int], None]) -> None:
    """Write one safetensors file. Larger numbers come first, which keeps all aligned, as the library does it."""
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
    with reporting_disk_errors(path), path.open("wb") as file, ThreadPoolExecutor(1) as pool:
        file.write(len(text).to_bytes(8, "little") + text)
        following = pool.submit(ordered[0].make)
        for place, one in enumerate(ordered):
            tensor = following.result().to(one.dtype).contiguous()
            if place + 1 < len(ordered):
                following = pool.submit(ordered[place + 1].make)
            assert tuple(tensor.shape) == one.size, f"{one.name} is {tuple(tensor.shape)}, not {one.size}"
            content: Any = tensor.flatten().view(torch.uint8).numpy()
            for start in range(0, len(content), _CHUNK):
                file.write(content[start : start + _CHUNK].data)
                advance(min(_CHUNK, len(content) - start))
        file.flush()
        os.fsync(file.fileno())


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
