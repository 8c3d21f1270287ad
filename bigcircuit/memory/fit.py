"""Check whether a run fits into memory, and find settings with which it does."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib import import_module
from itertools import islice
from typing import Any

import torch

from bigcircuit.config.load import flatten
from bigcircuit.distributed.launcher_env import ranks_on_this_host
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import OutOfMemory
from bigcircuit.memory.estimate import Estimate, KnownPeaks, Workload, estimate, resting
from bigcircuit.model.deepspeed_config import DeepSpeedConfig
from bigcircuit.model.load import DTYPES
from bigcircuit.model.quantization import ON_LOADING, is_installed
from bigcircuit.runtime.host_memory import (
    GIB,
    FreeMemory,
    allocated_memory,
    allocation,
    is_out_of_memory,
    return_freed_memory,
    saves_memory,
)
from bigcircuit.train.resolve import ResolvedRun

_ERROR = 0.15
"""How far the prediction may be off (benchmarks/memory.md)."""
_LATER = 30 << 20
"""Bytes that a run takes later: 10 MiB in its first updates, 20 MiB for its page (benchmarks/memory.md)."""
_LIBRARIES, _KEPT = "Python and libraries", "freed memory that is kept"
_KEPT_SHARE = 0.5
"""Share of the activations that gaps between blocks take, where there is room for them (benchmarks/memory.md)."""
_ON_HOST = ("reference logits", "corrupted activations")
_ZERO3 = "configs/deepspeed/zero3.json"
_OFFLOAD = "configs/deepspeed/zero3_offload_cpu.json"
_NVME = "configs/deepspeed/zero3_offload_nvme.json"
_AUTO = {"stage": 3, "stage3_prefetch_bucket_size": "auto", "stage3_max_live_parameters": "auto"}
_IN_PIECES: dict[Any, DeepSpeedConfig] = {
    _ZERO3: {"zero_optimization": _AUTO},
    _OFFLOAD: {"zero_optimization": {**_AUTO, "offload_param": {"device": "cpu"}}},
    _NVME: {"zero_optimization": {**_AUTO, "offload_param": {"device": "nvme"}}},
}
"""Content of these files, for a machine without them."""


def needs(run: ResolvedRun, work: Workload, memory: FreeMemory, known: KnownPeaks | None = None) -> Estimate:
    """Predict the memory of a rank at its peak, with what the process itself holds; known: see `estimate`.

    On CPU freed memory is kept for the next block where all ranks, on one host, have room for it. It is handed back without that
    room, and where the settings trade time for memory: with checkpointing gaps were larger than what was in use.
    """
    sharded = run.model.deepspeed is not None
    libraries = 0 if memory.is_gpu else _libraries(sharded)  # before the estimate makes garbage
    found = estimate(run, work, memory.is_gpu, known)
    if memory.is_gpu:
        return found._replace(allocated=_in_memory(found.allocated, memory))
    least = found._replace(allocated={_LIBRARIES: libraries} | found.allocated)
    kept = round(_KEPT_SHARE * found.allocated["activations and gradients"])
    roomy = least._replace(allocated=least.allocated | {_KEPT: kept})
    has_room = (1 + _ERROR) * roomy.on_host(work.ranks) <= memory.free
    return roomy if has_room and not saves_memory(run.config, sharded) else least


def fits(found: Estimate, ranks: int, memory: FreeMemory) -> bool:
    """Return whether a rank has the memory that it needs; on CPU all ranks share one host. ranks: on this host."""
    return (found.total if memory.is_gpu else found.on_host(ranks)) <= memory.free


def _in_memory(parts: Mapping[str, int], memory: FreeMemory) -> dict[str, int]:
    """Leave out what is not in the memory that is asked about."""
    return {name: size for name, size in parts.items() if not (memory.is_gpu and name in _ON_HOST)}


@cache
def _libraries(sharded: bool) -> int:
    """Bytes that libraries take in a run: those of its imports, measured at the first call, and of what it loads later."""
    if sharded:
        import_module("deepspeed")
    return allocated_memory() + _LATER


def remedies(run: ResolvedRun, work: Workload, memory: FreeMemory) -> Iterator[str]:
    """Find changes of settings with which the run fits, the mildest first, each with the bytes it then needs."""
    micro = run.config.train.micro_batch_size
    smaller: list[dict[str, Any]] = [
        {"train.micro_batch_size": size} for size in (micro // 2, micro // 4, 1) if 0 < size < micro
    ]
    saved: dict[str, Any] = {"train.checkpointing": True}
    least = {**saved, "train.micro_batch_size": 1}
    changes: list[tuple[dict[str, Any], int]] = [(change, work.ranks) for change in [*smaller, saved, least]]
    plain = not run.model.quantization.loaded
    if plain and run.model.deepspeed is None and run.model.stored == DTYPES[run.config.model.dtype]:
        stream = {"model.weights": "stream"}
        changes += [({**stream, **more}, work.ranks) for more in ({}, saved, least)]
    if run.config.model.dtype == "float32":
        changes += [({"model.dtype": "bfloat16"}, work.ranks), ({**least, "model.dtype": "bfloat16"}, work.ranks)]
    if (
        plain
        and run.model.deepspeed is None
        and not run.model.quantization.stored
        and run.config.model.weights == "resident"
    ):
        changes += [
            ({**more, "model.quantization": to}, work.ranks)
            for to, name in ON_LOADING.items()
            if is_installed(name)
            for more in ({}, least)
        ]
    for count in (2, 4, 8, 16) if plain else ():
        if count >= work.ranks:
            changes += [({"deepspeed": _ZERO3}, count), ({**least, "deepspeed": _ZERO3}, count)]
    if memory.is_gpu and plain:
        changes.append(({**least, "deepspeed": _OFFLOAD}, work.ranks))
    elif work.ranks > 1 and run.model.stays_in_files:
        changes += [({**more, "deepspeed": _NVME}, work.ranks) for more in ({}, least)]
    known: KnownPeaks = {}
    now, seen = dict(flatten(run.config.model_dump(mode="json"))), set[str]()
    for wanted, ranks in changes:
        change = {key: value for key, value in wanted.items() if now.get(key) != value}
        if (not change and ranks == work.ranks) or f"{change} {ranks}" in seen:
            continue
        seen.add(f"{change} {ranks}")
        changed = run.changed(change, "remedy")
        if changed.config.train.batch_size < ranks:
            continue
        if "deepspeed" in change:
            changed = replace(changed, model=replace(changed.model, deepspeed=_IN_PIECES[change["deepspeed"]]))
        planned = work._replace(ranks=ranks)
        between = resting(changed, planned, memory.is_gpu)
        if not fits(between._replace(allocated=_in_memory(between.allocated, memory)), ranks, memory):
            continue  # a pass of a large model takes seconds even without data
        found = needs(changed, planned, memory, known)
        if fits(found, ranks, memory):
            words = " ".join(
                f"--{key} {str(value).lower() if value is True else value}" for key, value in change.items()
            )
            yield f"{words}{f' on {ranks} ranks' if ranks != work.ranks else ''} ({found.total / GIB:.2f} GiB a rank)"


@contextmanager
def explain_out_of_memory(run: ResolvedRun, ranks: Ranks, population: int | None = None) -> Iterator[None]:
    """Turn running out of memory inside the context into OutOfMemory, with what the run needs and three remedies.

    population: how many members share the passes, where that is not what the settings say.
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        if population is not None:
            run = run.changed({"population.seeds": population}, "sweep.slots")
        work = Workload.of(run.data.splits, ranks.size)
        where = f" on rank {ranks.rank}{allocation(error)}"
        raise _out_of_memory(run, work, FreeMemory.measure(ranks.device.type), where) from error


def check_fits(run: ResolvedRun, ranks: Ranks) -> None:
    """Refuse a run that cannot fit, and hand freed memory back to the system where memory is short.

    Raises OutOfMemory, before weights are loaded. Only without a GPU: a GPU raises an error, while Linux kills a
    process that takes too much without a message.
    """
    memory, work = FreeMemory.measure(ranks.device.type), Workload.of(run.data.splits, ranks.size)
    if memory.is_gpu:
        return
    found = needs(run, work, memory)
    if (1 - _ERROR) * found.on_host(ranks_on_this_host(ranks.size)) > memory.free:
        raise _out_of_memory(run, work, memory, "")
    if _KEPT not in found.allocated:
        return_freed_memory()


def _out_of_memory(run: ResolvedRun, work: Workload, memory: FreeMemory, where: str) -> OutOfMemory:
    return OutOfMemory(
        f"out of memory{where}: the run needs about {_sentence(needs(run, work, memory))} and "
        f"{memory.free / GIB:.2f} GiB are free; try {_choice(remedies(run, work, memory))}"
    )


def _sentence(found: Estimate) -> str:
    parts = found.allocated
    largest = sorted(parts, key=lambda name: -parts[name])[:2]
    named = ", ".join(f"{name} {parts[name] / GIB:.2f}" for name in largest)
    files = f", {found.mapped / GIB:.2f} GiB for weight files" if found.mapped >= GIB // 100 else ""
    return f"{found.total / GIB:.2f} GiB ({named}) a rank{files}"


def _choice(all_: Iterator[str]) -> str:
    found = list(islice(all_, 3))
    if not found:
        return "fewer members in the population, shorter prompts, or a larger machine: no other settings fit here"
    return "; or ".join(found)
