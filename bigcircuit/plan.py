"""Will it fit, and if not, with which settings does it."""

import ctypes
import os
import resource
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch

from bigcircuit.config import Config
from bigcircuit.config_file import override
from bigcircuit.distributed import Ranks
from bigcircuit.errors import OutOfMemory
from bigcircuit.frozen.load import skeleton
from bigcircuit.memory import Known, Workload, estimate
from bigcircuit.sharding import Settings, read_settings
from bigcircuit.tasks.data import TaskData

GIB = 2**30
_ERROR = 0.15
"""How far the prediction may be off (benchmarks/memory.md)."""
_LIBRARIES, _KEPT = "Python and libraries", "freed memory that is kept"
_KEPT_SHARE = 0.5
"""Of the activations: gaps between blocks in use, where there is room for them (benchmarks/memory.md)."""
_ON_HOST = ("reference logits",)
_ZERO3 = "configs/deepspeed/zero3.json"
_OFFLOAD = "configs/deepspeed/zero3_offload_cpu.json"
_AUTO = {"stage": 3, "stage3_prefetch_bucket_size": "auto", "stage3_max_live_parameters": "auto"}
_IN_PIECES: dict[Any, Settings] = {
    _ZERO3: {"zero_optimization": _AUTO},
    _OFFLOAD: {"zero_optimization": {**_AUTO, "offload_param": {"device": "cpu"}}},
}
"""What these files say, for a machine that does not have them at hand."""


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


def saves_memory(config: Config, settings: Settings | None) -> bool:
    """Whether the config trades time for memory; settings: as from `read_settings`."""
    return settings is not None or bool(config.train.checkpointing)


def _left_in_group() -> int:
    """Bytes left under the limit of this process's control group, which batch systems and containers set."""
    with suppress(OSError, ValueError):
        name = Path("/proc/self/cgroup").read_text().split("::")[1].split()[0]
        group = Path("/sys/fs/cgroup", name.lstrip("/"))
        return int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    return sys.maxsize


def needs(
    config: Config, settings: Settings | None, work: Workload, memory: Memory, known: Known | None = None
) -> dict[str, int]:
    """Bytes at the peak of a rank by what needs them; settings: as from `read_settings`; known: see `estimate`.

    On CPU freed memory is kept for the next block where all ranks, on one host, have room for it. It is handed back where they
    have not, and where the settings trade time for memory: with checkpointing gaps were larger than what was in use.
    """
    libraries = 0 if memory.accelerator else _libraries(settings is not None)  # before the estimate makes garbage
    parts = estimate(skeleton(config.model), config, settings, work, known)
    if memory.accelerator:
        return {name: size for name, size in parts.items() if name not in _ON_HOST}
    least = {_LIBRARIES: libraries} | parts
    roomy = least | {_KEPT: round(_KEPT_SHARE * parts["activations and gradients"])}
    fits = (1 + _ERROR) * sum(roomy.values()) * work.ranks <= memory.free
    return roomy if fits and not saves_memory(config, settings) else least


@cache
def _libraries(sharded: bool) -> int:
    """Bytes this process holds before anything is loaded; asked at the start of a run and remembered."""
    import_module("bigcircuit.prune")  # what a run imports counts
    if sharded:
        import_module("deepspeed")
    return psutil.Process().memory_info().rss


def remedies(config: Config, settings: Settings | None, work: Workload, memory: Memory) -> Iterator[str]:
    """Changes of settings after which the run fits, the gentlest first, each with what it then needs."""
    micro = config.train.micro_batch_size
    smaller = [{"train.micro_batch_size": size} for size in (micro // 2, micro // 4, 1) if 0 < size < micro]
    saved = {"train.checkpointing": True}
    least = {**saved, "train.micro_batch_size": 1}
    changes: list[tuple[dict[str, object], int]] = [(change, work.ranks) for change in [*smaller, saved, least]]
    if config.model.dtype == "float32":
        changes += [({"model.dtype": "bfloat16"}, work.ranks), ({**least, "model.dtype": "bfloat16"}, work.ranks)]
    for count in (2, 4, 8, 16):
        if count >= work.ranks:
            changes += [({"deepspeed": _ZERO3}, count), ({**least, "deepspeed": _ZERO3}, count)]
    if memory.accelerator:
        changes.append(({**least, "deepspeed": _OFFLOAD}, work.ranks))
    known: Known = {}
    for change, ranks in changes:
        changed = override(config, change, "remedy")
        if changed.train.batch_size < ranks:
            continue
        sharding = _IN_PIECES.get(change.get("deepspeed"), settings)
        size = sum(needs(changed, sharding, work._replace(ranks=ranks), memory, known).values())
        # Ranks on one host share the memory of the host.
        if size * (1 if memory.accelerator else ranks) <= memory.free:
            words = " ".join(
                f"--{key} {str(value).lower() if value is True else value}" for key, value in change.items()
            )
            yield f"{words}{f' on {ranks} ranks' if ranks != work.ranks else ''} ({size / GIB:.2f} GiB a rank)"


@contextmanager
def explained(config: Config, data: TaskData, ranks: Ranks) -> Iterator[None]:
    """Turn running out of memory into OutOfMemory: what the run needs, and three settings with which it fits."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not out_of_memory(error):
            raise
        raise _explanation(
            config, Workload.of(data.splits, ranks.size), Memory.here(), f" on rank {ranks.rank}"
        ) from error


def make_fit(config: Config, data: TaskData, ranks: Ranks) -> None:
    """Have freed memory handed back where it is short, and refuse what even so and with luck cannot fit.

    Raises OutOfMemory, before weights are loaded. Only without a GPU: a GPU says so itself, while Linux ends a process that
    takes too much without a word.
    """
    memory, work, settings = Memory.here(), Workload.of(data.splits, ranks.size), read_settings(config.deepspeed)
    if memory.accelerator:
        return
    on_host = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or ranks.size)
    parts = needs(config, settings, work, memory)
    if (1 - _ERROR) * sum(parts.values()) * on_host > memory.free:
        raise _explanation(config, work, memory, "")
    if _KEPT not in parts:
        give_freed_memory_back()


def _explanation(config: Config, work: Workload, memory: Memory, where: str) -> OutOfMemory:
    settings = read_settings(config.deepspeed)
    return OutOfMemory(
        f"out of memory{where}: the run needs about {_sentence(needs(config, settings, work, memory))} a rank and "
        f"{memory.free / GIB:.2f} GiB are free; try {_choice(remedies(config, settings, work, memory))}"
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether this error of torch says that memory did not suffice."""
    return (
        isinstance(error, torch.OutOfMemoryError)
        or "allocate memory" in str(error)
        or "not enough memory" in str(error)
    )


def _sentence(parts: Mapping[str, int]) -> str:
    largest = sorted(parts, key=lambda name: -parts[name])[:2]
    named = ", ".join(f"{name} {parts[name] / GIB:.2f}" for name in largest)
    return f"{sum(parts.values()) / GIB:.2f} GiB ({named})"


def _choice(all_: Iterator[str]) -> str:
    found = list(islice(all_, 3))
    if not found:
        return "fewer members in the population, shorter prompts, or a larger machine: no other settings fit here"
    return "; or ".join(found)
