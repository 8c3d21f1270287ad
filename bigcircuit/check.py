"""Verbs that load no weights: check a config and its pairs, list tasks, describe the environment."""

import os
import platform
from importlib import import_module
from importlib.metadata import entry_points

import torch
from rich.table import Table

from bigcircuit.config.load import check_objective, penalty_note
from bigcircuit.config.schema import Config
from bigcircuit.config.shipped import shipped_root
from bigcircuit.config.text import TEXT_TASK
from bigcircuit.data.builders import DESCRIPTIONS, ENTRY_POINTS
from bigcircuit.data.dataset import TaskData, make_pairs
from bigcircuit.data.pair import Example
from bigcircuit.data.shown_tokens import token_lines
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import OutOfMemory
from bigcircuit.gates.members import trained_granularities
from bigcircuit.io.provenance import versions
from bigcircuit.memory.estimate import Estimate, Workload
from bigcircuit.memory.fit import fits, needs, remedies
from bigcircuit.memory.update_time import predict_time, threads_of_rank
from bigcircuit.model.load import load_tokenizer
from bigcircuit.model.weight_files import weight_files
from bigcircuit.runtime.console import PlainConsole
from bigcircuit.runtime.host_memory import GIB, FreeMemory
from bigcircuit.runtime.progress import ProgressDisplay
from bigcircuit.train.resolve import ResolvedRun, resolve


def check_config(
    config: Config, console: PlainConsole, ranks: int = 1, memory: FreeMemory | None = None, *, timed: bool = False
) -> None:
    """Validate model config, tokenizer, task and targets, and print what a run would do.

    Raises UserError for what is wrong, and OutOfMemory, after all is printed, where the run does not fit.

    ranks, memory: of the machines that the run is planned for; by default one rank on this machine. timed: also measure for a few
    seconds how long an update and the run would take here.
    """
    import_module("bigcircuit.prune")  # what a run imports counts as memory of its process

    progress = ProgressDisplay(True, console=console)
    run = resolve(config, Ranks(), progress)
    check_objective(run.members)
    console.print(_sites(run))
    is_text = config.task.name == TEXT_TASK
    console.print(_windows(run.data) if is_text else _pairs(run.data))
    for name, examples in run.data.splits.items():
        if examples:
            marks = "" if is_text else ", ^ below those that differ"
            progress.print_line(f"{name}: {examples[0].source} as tokens{marks}")
            for line in token_lines(examples[0], run.model.tokenizer, console.width):
                progress.print_line(line)
    for note in (*run.data.notes, *penalty_note(run.members)):
        progress.print_line(f"note: {note}")
    for line in run.model.notes:
        console.print(line)
    if not weight_files(config.model):
        console.print(f"{config.model.path}: the weights are not here, so they were not checked")
    for problem in run.data.bad:
        console.print(f"left out: {problem}")
    work, memory = Workload.of(run.data.splits, ranks), memory or FreeMemory.measure(config.model.device)
    with progress.phase("counting memory"):
        found = needs(run, work, memory)
    remedy = _memory(run, work, memory, found, progress)
    if timed:
        with progress.phase("measuring time"):
            _time(run, work, memory, found, console)
    if remedy:
        raise OutOfMemory(f"the config is valid, but the run does not fit: {remedy}")
    console.print(f"{len(run.members)} member(s), {config.train.steps} steps: the config is valid")


def machine(ranks: int, memory: FreeMemory) -> str:
    """Describe the machine of a run: `8 ranks on GPUs of 80 GiB each`, `2 ranks on one CPU host with 24 GiB`."""
    size = f"{memory.free / GIB:.3g} GiB"
    if memory.is_gpu:
        return f"1 rank on a GPU of {size}" if ranks == 1 else f"{ranks} ranks on GPUs of {size} each"
    return f"{ranks} rank{'s' if ranks > 1 else ''} on one CPU host with {size}"


def _memory(run: ResolvedRun, work: Workload, memory: FreeMemory, found: Estimate, progress: ProgressDisplay) -> str:
    """Print what a rank needs at its peak, and, where that is more than there is, the settings that fit.

    Returns what to do where the run does not fit, else an empty text.
    """
    console = progress.console
    suffix = f" behind the shared prefix, of {work.tokens}" if run.stores_corrupted else ""
    tokens = work.suffix if suffix else work.tokens
    console.print(
        f"{machine(work.ranks, memory)}: {run.config.train.micro_batch_size} x {tokens} tokens at once{suffix}"
    )
    if run.both_streams:
        console.print(run.both_streams)
    shown = Table(title="peak memory of a rank")
    shown.add_column("what")
    shown.add_column("MiB", justify="right")
    for name, size in {**found.allocated, "together": found.total}.items():
        shown.add_row(name, f"{size / 2**20:,.1f}")
    if found.mapped:
        shown.add_row("files, mapped once a host", f"{found.mapped / 2**20:,.1f}")
    console.print(shown)
    on_host = 1 if memory.is_gpu else work.ranks
    if fits(found, work.ranks, memory):
        console.print(f"it fits: {memory.free / 2**30:.2f} GiB are free")
        return ""
    console.print(
        f"it does not fit: {memory.free / 2**30:.2f} GiB are free{' for all ranks here' if on_host > 1 else ''}"
    )
    with progress.phase("counting memory of other settings"):
        others = list(remedies(run, work, memory))
    for one in others or ["no other settings fit"]:
        console.print(f"  {one}")
    return "add one of the settings above" if others else "use fewer members, shorter prompts or a larger machine"


def _time(run: ResolvedRun, work: Workload, memory: FreeMemory, needed: Estimate, console: PlainConsole) -> None:
    """Print how long an update and the run take here. Raises UserError if there is no room for the measurement."""
    if memory.is_gpu != (torch.cuda.is_available() and run.config.model.device != "cpu"):
        console.print(f"--time: time can be measured only on the machine itself; this one has {_devices()}")
        return
    predicted = predict_time(run, work, memory, needed)
    measured = predicted.measured
    shown = Table(title=f"time on this machine: {predicted.update:.3g} s an update")
    shown.add_column("what")
    shown.add_column("seconds", justify="right")
    for name, seconds in {**predicted.parts, "together": predicted.total}.items():
        shown.add_row(name, f"{seconds:,.1f}")
    console.print(shown)
    speed = measured.flops / measured.update / 1e9
    console.print(
        f"measured on {measured.layers} of {len(run.model.shapes)} layers with random weights, "
        f"{threads_of_rank(work.ranks)} thread(s) a rank: {measured.flops / 1e9:,.3g} GFLOP a pass at {speed:,.3g} GFLOP/s"
        + (
            f"; other programs use the cores: {measured.waited:.1f} times as long while they do"
            if measured.waited > 1.3
            else ""
        )
        + (f"; {predicted.read / GIB:.1f} GiB are read from disk in every pass" if predicted.read else "")
    )


def _devices() -> str:
    return "GPUs" if torch.cuda.is_available() else "no GPU"


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


def _windows(data: TaskData) -> Table:
    shown = Table(title="windows of text")
    for heading in ("split", "windows", "documents", "longest (tokens)", "scored tokens"):
        shown.add_column(heading, justify="left" if heading == "split" else "right")
    for name, examples in data.splits.items():
        if examples:
            scored = sum(len(example.answers[0]) for example in examples)
            documents = len({example.document for example in examples})
            longest = max(len(example.clean) + len(example.answers[0]) for example in examples)
            shown.add_row(name, *(f"{number:,}" for number in (len(examples), documents, longest, scored)))
    return shown


def list_tasks(console: PlainConsole) -> None:
    """Print the task builders, each with the first line of its module's docstring."""
    shown = Table(title="tasks (set task.name; `pairs` reads task.path)")
    shown.add_column("name")
    shown.add_column("what")
    for name, description in DESCRIPTIONS.items():
        shown.add_row(name, description)
    for found in entry_points(group=ENTRY_POINTS):
        shown.add_row(found.name, f"of {found.dist.name if found.dist else found.value}, an installed package")
    console.print(shown)


def show_pairs(config: Config, console: PlainConsole, count: int = 8) -> None:
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


def show_environment(console: PlainConsole) -> None:
    """Print versions, devices, cores and the variables that launchers set."""
    shown = Table(title="environment")
    shown.add_column("what")
    shown.add_column("value")
    for name, value in versions().items():
        shown.add_row(name, value)
    shown.add_row("platform", platform.platform())
    shown.add_row("configs and launchers", str(shipped_root()))
    shown.add_row("cores", f"{len(os.sched_getaffinity(0))} usable, torch uses {torch.get_num_threads()}")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    shown.add_row("accelerators", ", ".join(devices) or "none, running on CPU")
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "HF_HOME", "HF_HUB_OFFLINE"):
        if name in os.environ:
            shown.add_row(name, os.environ[name])
    console.print(shown)
