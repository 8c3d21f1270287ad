"""Measure what bounds a run that reads its weights: bytes and FLOPs of an update, the disk, and bfloat16 matrix products."""

import os
import time
from collections.abc import Sequence
from itertools import cycle
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open
from torch.nn.functional import linear

BLOCK = 1 << 23
"""Bytes of a read."""
LIMIT = 4 << 30
"""Bytes after which the measurement of the disk ends."""


def cpu_name() -> str:
    """Return the name of the processor and how many of its cores may be used."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def reading_seconds(paths: Sequence[Path], limit: int | None = None) -> tuple[float, int]:
    """Read files one after the other. Returns seconds and bytes; limit: bytes after which no other file is begun."""
    buffer, start, done = bytearray(BLOCK), time.perf_counter(), 0
    for path in paths:
        if limit is not None and done >= limit:
            break
        with path.open("rb", buffering=0) as file:
            while got := file.readinto(buffer):
                done += got
    return time.perf_counter() - start, done


def disk_speed(paths: Sequence[Path]) -> float:
    """Measure bytes a second of reading files that are not in the page cache, from which they are dropped before."""
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    seconds, done = reading_seconds(paths, LIMIT)
    return done / seconds


def matmul_speed(rows: int, inner: int, outer: int, threads: int, seconds: float = 2.0) -> float:
    """Measure FLOPs a second of bfloat16 products [rows, inner] x [inner, outer] with weights that are not in a cache."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    value = torch.randn(rows, inner, dtype=torch.bfloat16)
    weights = [torch.randn(outer, inner, dtype=torch.bfloat16) for _ in range(4)]
    for weight in weights:
        linear(value, weight)
    start, count = time.perf_counter(), 0
    for weight in cycle(weights):
        linear(value, weight)
        count += 1
        if (passed := time.perf_counter() - start) > seconds:
            break
    torch.set_num_threads(before)
    return 2 * rows * inner * outer * count / passed


def update_flops(entries: int, tokens: int, members: int) -> int:
    """Count FLOPs of an update with checkpointing through matrices of `entries` entries in all, with stored corrupted activations.

    All members go forward, and again in the recomputation; gradients of activations, not of weights, go back. tokens: behind the
    shared prefixes of all prompts of the update.
    """
    return 2 * entries * tokens * 3 * members


def layer_entries(folder: Path) -> int:
    """Count the entries of all decoder layers in the files of a model."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if ".layers." in name]  # noqa: SIM118
            count += sum(prod(file.get_slice(name).get_shape()) for name in names)
    return count
