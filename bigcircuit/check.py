"""Verbs that load no weights: check a config and its pairs, list tasks, describe the environment."""

import os
import platform
import sys

from rich.console import Console
from rich.table import Table

from bigcircuit.config.load import members
from bigcircuit.config.schema import Config
from bigcircuit.data.builders import BUILDERS
from bigcircuit.data.dataset import TaskData, load_ablation_data, load_task, make_pairs
from bigcircuit.data.pair import Example
from bigcircuit.gates.members import node_counts, trained_granularities
from bigcircuit.io.provenance import versions
from bigcircuit.memory.estimate import Workload
from bigcircuit.memory.fit import needs, remedies
from bigcircuit.model.granularity import GRANULARITIES
from bigcircuit.model.load import load_config, load_tokenizer, skeleton
from bigcircuit.model.sites import FrozenModel
from bigcircuit.model.zero3 import read_deepspeed
from bigcircuit.runtime.host_memory import Memory
from bigcircuit.train.targets import check_targets


def check_config(config: Config, console: Console, ranks: int = 1, memory: Memory | None = None) -> None:
    """Validate model config, tokenizer, task and targets, and print what a run would do. Raises UserError.

    ranks, memory: of the machines it is to run on; without them one rank here.
    """
    hf_config = load_config(config.model)
    data = load_task(config.task, load_tokenizer(config.model), hf_config)
    load_ablation_data(config, load_tokenizer(config.model), hf_config)
    frozen = skeleton(config.model)
    check_targets(config, node_counts(frozen.shapes, config.gates.granularities))
    console.print(_sites(config, frozen))
    console.print(_pairs(data))
    for problem in data.bad:
        console.print(f"left out: {problem}", markup=False)
    _memory(config, Workload.of(data.splits, ranks), memory or Memory.here(), console)
    console.print(f"{len(members(config))} member(s), {config.train.steps} steps: the config is valid")


def _memory(config: Config, work: Workload, memory: Memory, console: Console) -> None:
    """What a rank needs at its peak, and, where that is more than there is, the settings that fit."""
    settings = read_deepspeed(config.deepspeed)
    parts = needs(config, settings, work, memory)
    total = sum(parts.values())
    title = (
        f"peak memory of a rank, {work.ranks} rank(s), {config.train.micro_batch_size} x {work.tokens} tokens at once"
    )
    shown = Table(title=title)
    shown.add_column("what")
    shown.add_column("MiB", justify="right")
    for name, size in {**parts, "together": total}.items():
        shown.add_row(name, f"{size / 2**20:,.1f}")
    console.print(shown)
    on_host = 1 if memory.accelerator else work.ranks
    if total * on_host <= memory.free:
        console.print(f"it fits: {memory.free / 2**30:.2f} GiB are free")
        return
    console.print(
        f"it does not fit: {memory.free / 2**30:.2f} GiB are free{' for all ranks here' if on_host > 1 else ''}"
    )
    for one in list(remedies(config, settings, work, memory)) or ["no other settings fit"]:
        console.print(f"  {one}", markup=False)


def _sites(config: Config, frozen: FrozenModel) -> Table:
    shown = Table(title=f"{config.model.path}: {len(frozen.layers)} layers, sites and gates")
    for heading in ("granularity", "nodes", "gates"):
        shown.add_column(heading, justify="left" if heading == "granularity" else "right")
    gated = trained_granularities(members(config)[0])
    for name, count in node_counts(frozen.shapes, list(GRANULARITIES)).items():
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
    """The builders with the first line of their module's docstring."""
    shown = Table(title="tasks (set task.name; `pairs` reads task.path)")
    shown.add_column("name")
    shown.add_column("what")
    for name in sorted(BUILDERS):
        shown.add_row(name, (sys.modules[BUILDERS[name].__module__].__doc__ or "").splitlines()[0])
    console.print(shown)


def show_pairs(config: Config, console: Console, count: int = 8) -> None:
    """The first pairs that a config's task makes for its model."""
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
    """Versions, devices, cores and the variables that launchers set."""
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
