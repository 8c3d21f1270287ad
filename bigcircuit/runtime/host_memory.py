"""Measure the memory of this machine, and configure how the allocator returns freed memory."""

import ctypes
import mmap
import re
import resource
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import torch

from bigcircuit.config.schema import Config
from bigcircuit.distributed.ranks import Ranks, uses_gpu
from bigcircuit.errors import UserError

GIB = 2**30
"""Bytes."""
_SECONDS_BETWEEN_MEASUREMENTS = 0.01
"""Short against the passes of any model that fills memory; a measurement takes some microseconds."""


def peak_memory(ranks: Ranks) -> int:
    """Return the most bytes that were allocated: on the GPU, or on CPU by this process since `watch_memory`.

    Pages of mapped files are not counted: the system takes them back when memory is short.
    """
    if ranks.device.type == "cuda":
        return torch.cuda.max_memory_allocated(ranks.device)
    return max(_Watch.peak, allocated_memory())


def allocated_memory() -> int:
    """Return the bytes of this process that are not pages of files (anonymous memory, RssAnon of /proc/self/status)."""
    try:
        resident, of_files = map(int, Path("/proc/self/statm").read_text().split()[1:3])
    except OSError:  # not on Linux
        return psutil.Process().memory_info().rss
    return (resident - of_files) * mmap.PAGESIZE


def watch_memory() -> None:
    """Start to measure the peak of allocated memory; Linux keeps only that of all memory, pages of files included."""
    if not _Watch.started:
        _Watch.started = True
        threading.Thread(target=_Watch.run, name="watch-memory", daemon=True).start()


class _Watch:
    """The largest of measurements that a thread takes."""

    started = False
    peak = 0
    """Bytes."""

    @classmethod
    def run(cls) -> None:
        while True:
            cls.peak = max(cls.peak, allocated_memory())
            time.sleep(_SECONDS_BETWEEN_MEASUREMENTS)


class FreeMemory(NamedTuple):
    """Memory that a rank can use."""

    free: int
    """Bytes."""
    is_gpu: bool
    """Whether the memory is that of a GPU, which holds neither Python nor tensors kept on the host."""

    @classmethod
    def measure(cls, device: str = "auto") -> "FreeMemory":
        """Measure the free memory of this machine; memory that this process already holds counts as free.

        device: `model.device`, which says whether it is that of a GPU. Raises UserError for a GPU where there is none.
        """
        if uses_gpu(device):
            return cls(torch.cuda.mem_get_info()[0], True)
        limits = [psutil.virtual_memory().available, _free_in_cgroup()]
        address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
        if address_space != resource.RLIM_INFINITY:
            limits.append(address_space - psutil.Process().memory_info().vms)
        return cls(max(0, min(limits)) + allocated_memory(), False)

    @classmethod
    def asked(cls, device: str | None, gibibytes: float | None, planned: str = "auto") -> "FreeMemory":
        """Return the memory of the machine that is asked about: of this one, but for what is given.

        device: "cuda" or "cpu". planned: `model.device`. Raises UserError for GPUs without their memory where this machine has
        none, and the reverse.
        """
        if device is not None and planned not in ("auto", device):
            raise UserError(f"--device {device}: model.device is {planned}; leave one out")
        key = "--device" if device else "model.device"
        device = device or (None if planned == "auto" else planned)
        here = "cuda" if torch.cuda.is_available() else "cpu"
        if gibibytes is not None:
            return cls(int(gibibytes * GIB), (device or here) == "cuda")
        if device == "cuda" != here or (device == "cpu" != here and planned == "auto"):
            has, what = ("no GPU", "a GPU") if here == "cpu" else ("GPUs", "that host")
            raise UserError(f"{key} {device}: this machine has {has}; say with --memory how many GiB {what} has free")
        return cls.measure(device or "auto")


def return_freed_memory() -> None:
    """Have glibc return blocks of 1 MiB and more to the operating system when they are freed.

    With 2 MiB, loading 109 MB in two pieces held up to .94 of the whole, in place of .70 at most: gaps between smaller weights.
    Only for runs that have to save memory: an update takes 1.4 times as long with fresh pages for every block (46M parameters,
    P = 4).
    """
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(ctypes.c_int(-3), ctypes.c_int(1 << 20))  # M_MMAP_THRESHOLD, bytes


def saves_memory(config: Config, sharded: bool) -> bool:
    """Return whether a run trades time for memory; sharded: whether ZeRO-3 divides its weights."""
    return sharded or config.model.weights == "stream" or bool(config.train.checkpointing)


def _free_in_cgroup() -> int:
    """Return the bytes left under the limit of this process's control group, which batch systems and containers set."""
    with suppress(OSError, ValueError):
        name = Path("/proc/self/cgroup").read_text().split("::")[1].split()[0]
        group = Path("/sys/fs/cgroup", name.lstrip("/"))
        return int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    return sys.maxsize


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of torch was raised because memory did not suffice."""
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "allocate memory" in str(error)
        or "not enough memory" in str(error)
    )


def allocation(error: BaseException) -> str:
    """Return ` while allocating SIZE in FILE` for an error of torch, as far as it says so; FILE: of this package."""
    found = re.search(r"[Tt]ried to allocate ([\d.]+) (bytes|[KMGT]iB)", str(error))
    if found is None:
        return ""
    number, unit = found.groups()
    size = f"{int(number) / GIB:.2f} GiB" if unit == "bytes" else f"{number} {unit}"
    package = Path(__file__).parents[1]
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    own = [file.relative_to(package) for file in files if file.is_relative_to(package)]
    return f" while allocating {size}{f' in {own[-1]}' if own else ''}"
