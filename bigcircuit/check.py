"""Verbs that load no weights: check a config and its pairs, list tasks, describe the environment."""

import os
import platform
import sys
from importlib import import_module

from rich.console import Console
from rich.table import Table

from bigcircuit.config.schema import Config
from bigcircuit.data.builders import BUILDERS
from bigcircuit.data.dataset import TaskData, make_pairs
from bigcircuit.data.pair import Example
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.gates.members import trained_granularities
from bigcircuit.io.provenance import versions
from bigcircuit.memory.estimate import Workload
from bigcircuit.memory.fit import fits, needs, remedies
from bigcircuit.model.load import load_tokenizer
from bigcircuit.runtime.host_memory import FreeMemory
from bigcircuit.runtime.progress import ProgressDisplay
from bigcircuit.train.resolve import ResolvedRun, resolve


def check_config(config: Config, console: Console, ranks: int = 1, memory: FreeMemory | None = None) -> None:
    """Validate model config, tokenizer, task and targets, and print what a run would do. Raises UserError.

    ranks, memory: of the machines that the run is planned for; by default one rank on this machine.
    """
    import_module("bigcircuit.prune")  # what a run imports counts as memory of its process

    progress = ProgressDisplay(True, console=console)
    run = resolve(config, Ranks(), progress)
    console.print(_sites(run))
    console.print(_pairs(run.data))
    for problem in run.data.bad:
        console.print(f"left out: {problem}", markup=False)
    _memory(run, Workload.of(run.data.splits, ranks), memory or FreeMemory.measure(), progress)
    console.print(f"{len(run.members)} member(s), {config.train.steps} steps: the config is valid")


def _memory(run: ResolvedRun, work: Workload, memory: FreeMemory, progress: ProgressDisplay) -> None:
    """Print what a rank needs at its peak, and, where that is more than there is, the settings that fit."""
    console = progress.console
    with progress.phase("counting memory"):
        found = needs(run, work, memory)
    title = f"peak memory of a rank, {work.ranks} rank(s), {run.config.train.micro_batch_size} x {work.tokens} tokens at once"
    shown = Table(title=title)
    shown.add_column("what")
    shown.add_column("MiB", justify="right")
    for name, size in {**found.allocated, "together": found.total}.items():
        shown.add_row(name, f"{size / 2**20:,.1f}")
    if found.mapped:
        shown.add_row("weight files, mapped once a host", f"{found.mapped / 2**20:,.1f}")
    console.print(shown)
    on_host = 1 if memory.is_gpu else work.ranks
    if fits(found, work.ranks, memory):
        console.print(f"it fits: {memory.free / 2**30:.2f} GiB are free")
        return
    console.print(
        f"it does not fit: {memory.free / 2**30:.2f} GiB are free{' for all ranks here' if on_host > 1 else ''}"
    )
    with progress.phase("counting memory of other settings"):
        others = list(remedies(run, work, memory))
    for one in others or ["no other settings fit"]:
        console.print(f"  {one}", markup=False)


def _sites(run: ResolvedRun) -> Table:
    shown = Table(title=f"{run.config.model.path}: {len(run.model.shapes)} layers, sites and gates")
    for heading in ("granularity", "nodes", "gates"):
        shown.add_column(heading, justify="left" if heading == "granularity" else "right")
    gated = trained_granularities(run.members[0])
    for name, count in run.model.nodes.items():
        shown.add_row(
            "site neurons" if name == "total" else name,
            f"{count:,}",
            "yes" if name in gated else "",
        )
    return shown


def _tokens(example: Example) -> int:
    return len(example.clean) + len(example.answers[0]) - 1


def _pairs(data: TaskData) -> Table:
    shown = Table(title="pairs")
    for heading in ("split", "pairs", "longest prompt (tokens)", "first clean prompt", "answers"):
        shown.add_column(heading)
    for name, examples in data.splits.items():
        if examples:
            pair = data.pairs[examples[0].id]
            longest = str(max(map(_tokens, examples)))
            shown.add_row(name, str(len(examples)), longest, str(pair.clean)[:80], _few(pair.answers))
    return shown


def list_tasks(console: Console) -> None:
    """Print the task builders, each with the first line of its module's docstring."""
    shown = Table(title="tasks (set task.name; `pairs` reads task.path)")
    shown.add_column("name")
    shown.add_column("what")
    for name in sorted(BUILDERS):
        shown.add_row(name, (sys.modules[BUILDERS[name].__module__].__doc__ or "").splitlines()[0])
    console.print(shown)


def show_pairs(config: Config, console: Console, count: int = 8) -> None:
    """Print the first pairs that a config's task makes for its model."""
    pairs = make_pairs(config.task, load_tokenizer(config.model))
    shown = Table(title=f"{config.task.path or config.task.name}: {count} of {len(pairs)} pairs", show_lines=True)
    for heading in ("clean", "corrupted", "answers", "wrong answers"):
        shown.add_column(heading)
    for pair in pairs[:count]:
        shown.add_row(str(pair.clean), str(pair.corrupted), _few(pair.answers), _few(pair.wrong_answers))
    console.print(shown)


def _few(answers: tuple) -> str:
    return ", ".join(repr(answer) for answer in answers[:4]) + (", ..." if len(answers) > 4 else "")


def show_environment(console: Console) -> None:
    """Print versions, devices, cores and the variables that launchers set."""
    import torch

    shown = Table(title="environment")
    shown.add_column("what")
    shown.add_column("value")
    for name, value in versions().items():
        shown.add_row(name, value)
    shown.add_row("platform", platform.platform())
    shown.add_row("cores", f"{len(os.sched_getaffinity(0))} usable, torch uses {torch.get_num_threads()}")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    shown.add_row("accelerators", ", ".join(devices) or "none, running on CPU")
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "HF_HOME", "HF_HUB_OFFLINE"):
        if name in os.environ:
            shown.add_row(name, os.environ[name])
    console.print(shown)
