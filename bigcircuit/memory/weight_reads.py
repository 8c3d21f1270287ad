"""Reads of the weight files: how fast the disk is, what the page cache holds, and what a pass reads when memory is short."""

import hashlib
import mmap
import os
import time
from collections.abc import Sequence
from ctypes import CDLL, c_size_t, c_ubyte, c_void_p
from pathlib import Path

import numpy as np

_CHUNK, _SAMPLE = 1 << 23, 1 << 28
"""Bytes of one read, and the most that a measurement reads."""
_SECONDS = 1.0
"""After these no more is read."""


def read_speed(files: Sequence[Path]) -> float:
    """Measure how fast the largest file is read past the page cache, bytes a second.

    Where the file system has no direct reads the pages are dropped from the cache before.
    """
    path = max(files, key=lambda file: file.stat().st_size)
    buffer, done = mmap.mmap(-1, _CHUNK), 0
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, _SAMPLE, os.POSIX_FADV_DONTNEED)
    try:
        started = time.perf_counter()
        while done < _SAMPLE and time.perf_counter() - started < _SECONDS:
            if not (count := os.preadv(descriptor, [buffer], done)):
                break
            done += count
        return done / (time.perf_counter() - started)
    finally:
        os.close(descriptor)


def hash_speed() -> float:
    """Measure sha256, by which a run knows its weights, bytes a second."""
    block = bytes(1 << 24)
    started = time.perf_counter()
    hashlib.sha256(block).digest()
    return len(block) / (time.perf_counter() - started)


def cached_bytes(files: Sequence[Path]) -> int:
    """Return how many bytes of files are in the page cache; 0 where the system does not tell."""
    return sum(_cached(path) for path in files)


def _cached(path: Path) -> int:
    size = path.stat().st_size
    if not size:
        return 0
    libc = CDLL(None, use_errno=True)
    libc.mincore.argtypes = [c_void_p, c_size_t, c_void_p]
    pages = (c_ubyte * -(-size // mmap.PAGESIZE))()
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = np.frombuffer(mapped, dtype=np.uint8)
        failed = libc.mincore(view.ctypes.data, size, pages)
        del view
    resident = np.frombuffer(bytes(pages), dtype=np.uint8) & 1
    return 0 if failed else min(size, int(resident.sum()) * mmap.PAGESIZE)


def bytes_of_update_pass(weights: int, cache: int) -> int:
    """Return the bytes read from disk for one micro-batch of an update: weights once forward and once backward.

    At both turns, from forward to backward and to the next forward pass, what was read last is still in the page cache.

    weights, cache: bytes of all weights, and of memory that is free to keep them.
    """
    return 0 if weights <= cache else 2 * (weights - cache)


def bytes_of_scoring_pass(weights: int, cache: int) -> int:
    """Return the bytes read from disk for a pass that goes forward only.

    All weights, where they do not fit: the next pass begins at the other end from what is cached.
    """
    return 0 if weights <= cache else weights
