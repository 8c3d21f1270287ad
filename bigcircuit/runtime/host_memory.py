"""Memory of this machine: what is free, what the process held at most, and how the allocator hands it back."""

import ctypes
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from bigcircuit.config.schema import Config
from bigcircuit.distributed.ranks import Ranks


def peak_memory(ranks: Ranks) -> int:
    """Bytes: the most that was allocated on the GPU, or the largest resident set of this process on CPU."""
    if ranks.device.type == "cuda":
        return torch.cuda.max_memory_allocated(ranks.device)
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        # Not on Linux. It counts in the process that started this one, until it became this one.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


GIB = 2**30


class Memory(NamedTuple):
    """What a rank has."""

    free: int
    """Bytes that are left for the run."""
    accelerator: bool
    """Whether it is that of a GPU, which holds neither Python nor what is kept on the host."""

    @classmethod
    def here(cls) -> "Memory":
        """Of this machine; what this process already holds is its own."""
        if torch.cuda.is_available():
            return cls(torch.cuda.mem_get_info()[0], True)
        process = psutil.Process().memory_info()
        limits = [psutil.virtual_memory().available, _left_in_group()]
        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        if most != resource.RLIM_INFINITY:
            limits.append(most - process.vms)
        return cls(max(0, min(limits)) + process.rss, False)


def give_freed_memory_back() -> None:
    """Have glibc hand blocks back to the system when they are freed, from 1 MiB on.

    From 2 MiB on, loading 109 MB in two pieces held up to .94 of the whole, in place of .70 at most: gaps between smaller weights.
    Only where memory is what counts: an update takes 1.4 times as long with fresh pages for every block (46M parameters, P = 4).
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(ctypes.c_int(-3), ctypes.c_int(1 << 20))  # M_MMAP_THRESHOLD, bytes


def saves_memory(config: Config, sharded: bool) -> bool:
    """Whether a run trades time for memory; sharded: whether ZeRO-3 divides its weights."""
    return sharded or bool(config.train.checkpointing)


def _left_in_group() -> int:
    """Bytes left under the limit of this process's control group, which batch systems and containers set."""
    with suppress(OSError, ValueError):
        name = Path("/proc/self/cgroup").read_text().split("::")[1].split()[0]
        group = Path("/sys/fs/cgroup", name.lstrip("/"))
        return int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    return sys.maxsize


def out_of_memory(error: BaseException) -> bool:
    """Whether this error of torch says that memory did not suffice."""
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "allocate memory" in str(error)
        or "not enough memory" in str(error)
    )
