"""Will it fit, and if not, with which settings does it."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from itertools import islice
from typing import Any

import psutil
import torch

from bigcircuit.config.load import override
from bigcircuit.config.schema import Config
from bigcircuit.data.dataset import TaskData
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import OutOfMemory
from bigcircuit.memory.estimate import KnownPeaks, Workload, estimate
from bigcircuit.model.load import skeleton
from bigcircuit.model.zero3 import DeepSpeedConfig, read_deepspeed
from bigcircuit.runtime.host_memory import GIB, Memory, give_freed_memory_back, out_of_memory, saves_memory

_ERROR = 0.15
"""How far the prediction may be off (benchmarks/memory.md)."""
_LIBRARIES, _KEPT = "Python and libraries", "freed memory that is kept"
_KEPT_SHARE = 0.5
"""Of the activations: gaps between blocks in use, where there is room for them (benchmarks/memory.md)."""
_ON_HOST = ("reference logits",)
_ZERO3 = "configs/deepspeed/zero3.json"
_OFFLOAD = "configs/deepspeed/zero3_offload_cpu.json"
_AUTO = {"stage": 3, "stage3_prefetch_bucket_size": "auto", "stage3_max_live_parameters": "auto"}
_IN_PIECES: dict[Any, DeepSpeedConfig] = {
    _ZERO3: {"zero_optimization": _AUTO},
    _OFFLOAD: {"zero_optimization": {**_AUTO, "offload_param": {"device": "cpu"}}},
}
"""What these files say, for a machine that does not have them at hand."""


def needs(
    config: Config, settings: DeepSpeedConfig | None, work: Workload, memory: Memory, known: KnownPeaks | None = None
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
    return roomy if fits and not saves_memory(config, settings is not None) else least


@cache
def _libraries(sharded: bool) -> int:
    """Bytes this process holds before anything is loaded; asked at the start of a run and remembered."""
    import_module("bigcircuit.prune")  # what a run imports counts
    if sharded:
        import_module("deepspeed")
    return psutil.Process().memory_info().rss


def remedies(config: Config, settings: DeepSpeedConfig | None, work: Workload, memory: Memory) -> Iterator[str]:
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
    known: KnownPeaks = {}
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
def explain_out_of_memory(config: Config, data: TaskData, ranks: Ranks) -> Iterator[None]:
    """Turn running out of memory into OutOfMemory: what the run needs, and three settings with which it fits."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not out_of_memory(error):
            raise
        raise _out_of_memory(
            config, Workload.of(data.splits, ranks.size), Memory.here(), f" on rank {ranks.rank}"
        ) from error


def check_fits(config: Config, data: TaskData, ranks: Ranks) -> None:
    """Have freed memory handed back where it is short, and refuse what even so and with luck cannot fit.

    Raises OutOfMemory, before weights are loaded. Only without a GPU: a GPU says so itself, while Linux ends a process that
    takes too much without a word.
    """
    memory, work, settings = Memory.here(), Workload.of(data.splits, ranks.size), read_deepspeed(config.deepspeed)
    if memory.accelerator:
        return
    on_host = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or ranks.size)
    parts = needs(config, settings, work, memory)
    if (1 - _ERROR) * sum(parts.values()) * on_host > memory.free:
        raise _out_of_memory(config, work, memory, "")
    if _KEPT not in parts:
        give_freed_memory_back()


def _out_of_memory(config: Config, work: Workload, memory: Memory, where: str) -> OutOfMemory:
    settings = read_deepspeed(config.deepspeed)
    return OutOfMemory(
        f"out of memory{where}: the run needs about {_sentence(needs(config, settings, work, memory))} a rank and "
        f"{memory.free / GIB:.2f} GiB are free; try {_choice(remedies(config, settings, work, memory))}"
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
