"""Time sixteen trials as one sweep, with 1, 4, 8 and 16 slots on a copy of the model, against sixteen separate `prune` runs.

Every run is a process, timed from its start to its end. Only a few of the separate runs are made, between the sweeps and with all
cores for each, and their mean counts sixteen times. The two ranks of a run under ZeRO-3 have one thread each: with two threads each
on two cores they took 1.5 times as long.

    python -m benchmarks.sweep --models FOLDER --pairs FOLDER [--cases stories260k,50M,zero3] [--slots 8 1 4 16]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
import yaml

from benchmarks.step_time import make_examples, make_model

ROOT = Path(__file__).parents[1]
OUTPUT = Path(__file__).with_suffix(".md")
TRIALS, SHORT, LONG = 16, 5, 600
"""Number of trials; updates of a short run and of a run with the default preset."""
HEAD = """# A sweep of sixteen trials against sixteen separate runs

Seconds are those of the whole commands, start-up included. Default settings: as many workers as trials need and cores allow.
The last column reckons with trials of the default length, from the start and the updates that were measured.
"""


class Case(NamedTuple):
    """A model with its settings, and how many runs of which length are made."""

    name: str
    settings: dict[str, Any]
    steps: int
    separate: int
    """Number of separate runs made, of sixteen."""
    ranks: int = 1

    @property
    def threads(self) -> int | None:
        """Threads of a rank of a separate run; None: torch's default."""
        return None if self.ranks == 1 else 1


class Timed(NamedTuple):
    """Measured seconds of all sixteen trials, one way to run them."""

    name: str
    whole: float
    short: float | None
    """Seconds with SHORT updates a trial; None where not measured."""


def cases(arguments: argparse.Namespace, folder: Path) -> list[Case]:
    """Return the cases of `--cases`; the model of 50M parameters is write_config to the folder."""
    pairs = {"name": "pairs", "path": str(arguments.pairs / "stories260k/pronoun_noun_name.jsonl")}
    stories = {"model": {"path": str(arguments.models / "stories260k")}, "task": pairs}
    zero3 = stories | {"deepspeed": str(ROOT / "configs/deepspeed/zero3.json")}
    found = []
    for name in arguments.cases.split(","):
        if name == "stories260k":
            found.append(Case("stories260k", stories, 300, 4))
        elif name == "zero3":
            found.append(Case("stories260k under ZeRO-3 on 2 ranks", zero3, 150, 2, 2))
        else:
            found.append(large_case(folder))
    return found


def large_case(folder: Path) -> Case:
    """Return the case of a model with random weights and random prompts of 64 tokens."""
    frozen = make_model()
    frozen.model.save_pretrained(folder / "model")
    lines = []
    for example in [one for seed in range(8) for one in make_examples(seed)]:
        row = {"clean": example.clean, "corrupted": example.corrupted, "answers": [[5]], "wrong_answers": [[6]]}
        lines.append(json.dumps(row))
    (folder / "pairs.jsonl").write_text("\n".join(lines) + "\n")
    settings = {
        "model": {"path": str(folder / "model")},
        "task": {"name": "pairs", "path": str(folder / "pairs.jsonl")},
        "train": {"batch_size": 4},
    }
    return Case(
        f"Llama of {frozen.model.num_parameters() / 1e6:.0f}M parameters, batches of 4 x 64 tokens", settings, 20, 3
    )


def write_config(folder: Path, case: Case, steps: int, slots: int | None, total: int = 0) -> Path:
    """Write the config of a sweep with `slots` slots, or, for None, of a separate run with `total` neurons."""
    path = folder / f"{slots}-{steps}-{total}.yaml"
    train = {**case.settings.get("train", {}), "steps": steps}
    raw = {"extends": str(ROOT / "configs/presets/default.yaml"), **case.settings, "train": train}
    if slots is None:
        raw |= {"target": {"total": total}}
    else:
        space = {"target.total": list(sizes())}
        raw |= {"sweep": {"space": space, "search": "grid", "slots": slots, "ranks": case.ranks}}
    path.write_text(yaml.safe_dump(raw))
    return path


def sizes() -> range:
    """Return the target sizes of the trials, in neurons."""
    return range(60, 60 + 50 * TRIALS, 50)


def seconds_of(words: Sequence[str], threads: int | None = None) -> float:
    """Run a command and return its wall time; threads: None for torch's default. Raises RuntimeError if it fails."""
    with started(words, threads) as process:
        start = time.monotonic()
        said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{said}")
    return time.monotonic() - start


def started(words: Sequence[str], threads: int | None) -> "subprocess.Popen[str]":
    """Start a command with a number of threads."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment |= {"OMP_NUM_THREADS": str(threads)} if threads else {}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def sweep_seconds(folder: Path, case: Case, slots: int, steps: int) -> float:
    """Run a sweep of all trials and return its seconds."""
    config = write_config(folder, case, steps, slots)
    words = [sys.executable, str(ROOT / "launchers/sweep.py"), "--config", str(config)]
    return seconds_of([*words, "--output", str(folder / f"sweep-{slots}-{steps}")])


def prune_command(folder: Path, case: Case, number: int, steps: int) -> list[str]:
    """Write the config of a separate run and return its command."""
    config = write_config(folder, case, steps, None, sizes()[number])
    prune = [
        str(ROOT / "launchers/prune.py"),
        "--config",
        str(config),
        "--output",
        str(folder / f"prune-{number}-{steps}"),
    ]
    if case.ranks == 1:
        return [sys.executable, *prune]
    return [str(Path(sys.executable).with_name("deepspeed")), "--num_gpus", str(case.ranks), *prune]


def pair_seconds(folder: Path, case: Case) -> float:
    """Run two separate runs side by side and return the seconds per trial: half of those of the pair."""
    commands = [prune_command(folder, case, number, case.steps) for number in (TRIALS - 1, TRIALS - 2)]
    start = time.monotonic()
    both = [started(words, 1) for words in commands]
    for process in both:
        said, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(said)
    return (time.monotonic() - start) / 2


def measure(case: Case, slots: Sequence[int], folder: Path) -> Iterator[list[Timed]]:
    """Yield all measurements so far, after every sweep or separate run; the first entry is the separate runs."""
    short = TRIALS * seconds_of(prune_command(folder, case, 0, SHORT), case.threads)
    alone, sweeps = list[float](), list[Timed]()
    for number in range(max(case.separate, len(slots))):
        if number < case.separate:
            alone.append(seconds_of(prune_command(folder, case, number, case.steps), case.threads))
        if number < len(slots):
            count = slots[number]
            whole = sweep_seconds(folder, case, count, case.steps)
            sweeps.append(Timed(f"sweep, P = {count}", whole, sweep_seconds(folder, case, count, SHORT)))
        yield [Timed("separate runs", TRIALS * mean(alone), short), *sweeps]
    if case.ranks == 1:
        both = Timed("separate runs, two at a time", TRIALS * pair_seconds(folder, case), None)
        yield [Timed("separate runs", TRIALS * mean(alone), short), both, *sweeps]


def page(case: Case, measured: Sequence[Timed]) -> list[str]:
    """Return the lines of a case's section."""
    separate, *_ = measured
    lines = [
        f"## {case.name}",
        "",
        f"{case.steps} updates a trial; {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}; {case.separate} separate "
        f"runs made; {date.today()}.",
        "",
        f"| | seconds | trials an hour | against separate runs | the same, {LONG} updates a trial |",
        "|---|---|---|---|---|",
    ]
    for one in measured:
        reckoned = "" if one.short is None else f"{long(separate, case) / long(one, case):.2f}"
        lines.append(
            f"| {one.name} | {one.whole:.0f} | {3600 * TRIALS / one.whole:.0f} | {separate.whole / one.whole:.2f} | {reckoned} |"
        )
    return [*lines, ""]


def long(timed: Timed, case: Case) -> float:
    """Extrapolate to seconds with LONG updates a trial: start and seconds per update as measured."""
    assert timed.short is not None
    return timed.whole + (timed.whole - timed.short) / (case.steps - SHORT) * (LONG - case.steps)


def main() -> None:
    """Measure and write the tables; tables of other cases are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--cases", default="stories260k,50M,zero3")
    parser.add_argument("--slots", type=int, nargs="+", default=[8, 1, 4, 16])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        for case in cases(arguments, Path(scratch)):
            folder = Path(scratch) / case.name.replace(" ", "-")
            folder.mkdir()
            for measured in measure(case, arguments.slots, folder):
                write_section(case.name, page(case, measured))
                print(*page(case, measured), sep="\n", flush=True)  # noqa: T201


def write_section(name: str, lines: Sequence[str]) -> None:
    """Replace the section of the same name in the output."""
    before = OUTPUT.read_text().split("\n## ")[1:] if OUTPUT.is_file() else []
    others = [part for part in before if not part.startswith(name + "\n")]
    sections = [*("## " + part.strip() + "\n" for part in others), "\n".join(lines)]
    OUTPUT.write_text("\n".join([HEAD, *sections]))


if __name__ == "__main__":
    main()
