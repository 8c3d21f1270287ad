"""Time of two checkouts in alternating order: start-up, a check, whole runs, an update, an evaluation, a sweep.

    python -m benchmarks.side_by_side BEFORE AFTER [--only NAME ...] [--config FILE] [--rounds 5] [--output FILE]

BEFORE and AFTER are folders of the repository, of which the same commands are run in turn, so that a machine whose speed drifts
slows both. Only ratios of one table mean something. CPU seconds are those of the command and of all processes that it waited for.
With `--config`, a YAML file that both checkouts know, its run and its evaluation are timed in place of the embedded model's.
"""

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple

EMBEDDED = "--task.name ioi --task.size 300 --target.total 250 --train.steps 300".split()
CASES: dict[str, tuple[str, int]] = {
    "a mistake on the command line": ("prune --train.stepz 3", 2),
    "`--help`": ("--help", 0),
    "`check`": ("check RUN", 0),
    "`prune`, whole command": ("prune RUN --output FOLDER", 0),
    "`evaluate` of that run": ("evaluate FOLDER", 0),
    "`sweep`, sixteen trials at P = 8": (
        "sweep RUN --sweep.search random --sweep.trials 16 --sweep.slots 8 --sweep.space SPACE --output FOLDER-sweep",
        0,
    ),
}
"""What is timed -> words of the command, and its exit code. RUN: the words of a run; FOLDER: the last run of this checkout."""
SPACE = "{train.lr: {log_uniform: [0.05, 0.2]}}"
_UPDATES = "`prune`, seconds an update"


class Spent(NamedTuple):
    """Seconds of one command."""

    wall: float
    cpu: float


def seconds(checkout: Path, words: list[str], code: int) -> tuple[Spent, str]:
    """Run a command of a checkout; returns its seconds and its output."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "bigcircuit", *words]
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != code:
        raise SystemExit(f"{checkout}: {' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return Spent(wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime), done.stdout


def measure(
    checkouts: list[Path], rounds: int, folder: Path, names: list[str], run: list[str]
) -> dict[str, list[list[Spent]]]:
    """Seconds by case, for each checkout one a round; the order of the checkouts changes from round to round."""
    found: dict[str, list[list[Spent]]] = {name: [[], []] for name in names}
    for turn in range(rounds):
        for name in names:
            for place in (0, 1) if turn % 2 else (1, 0):
                own, (command, code) = f"{folder}/{place}-{turn}", CASES[name]
                words = [
                    part
                    for word in command.split()
                    for part in {"RUN": run, "SPACE": [SPACE]}.get(word, [word.replace("FOLDER", own)])
                ]
                spent, said = seconds(checkouts[place], words, code)
                found[name][place].append(spent)
                sys.stderr.write(f"{checkouts[place]}: {name}: {spent.wall:.1f} s, {spent.cpu:.1f} s of CPU\n")
                # Checkouts before the change of this line wrote `step 300/300  18.2 steps/s  ...`.
                if rate := re.findall(r"(\d+)/\1(?: steps, [^\n]*?,)? +([\d.]+) steps/s", said):
                    update = 1 / float(rate[-1][1])
                    found.setdefault(_UPDATES, [[], []])[place].append(Spent(update, update))
    return found


def table(found: dict[str, list[list[Spent]]]) -> str:
    """Medians and the ratio of the medians, with the lowest and highest ratio of a round."""
    rows = [
        "| what | before, s | after, s | after / before (rounds) | CPU before, s | CPU after, s | after / before |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (before, after) in found.items():
        ratios = sorted(b.wall / a.wall for a, b in zip(before, after, strict=True))
        wall = [statistics.median(spent.wall for spent in spents) for spents in (before, after)]
        cpu = [statistics.median(spent.cpu for spent in spents) for spents in (before, after)]
        rows.append(
            f"| {name} | {wall[0]:.3g} | {wall[1]:.3g} | {wall[1] / wall[0]:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) "
            f"| {cpu[0]:.3g} | {cpu[1]:.3g} | {cpu[1] / cpu[0]:.2f} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, metavar="BEFORE")
    parser.add_argument("after", type=Path, metavar="AFTER")
    parser.add_argument(
        "--only", nargs="*", default=[""], metavar="NAME", help="parts of the names of the cases to time"
    )
    parser.add_argument("--config", metavar="FILE", help="relative to each checkout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    checkouts = [arguments.before.resolve(), arguments.after.resolve()]
    names = [name for name in CASES if any(part in name for part in arguments.only)]
    run = ["--config", arguments.config] if arguments.config else EMBEDDED
    with tempfile.TemporaryDirectory() as folder:
        found = measure(checkouts, arguments.rounds, Path(folder), names, run)
    commits = [
        subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=path, capture_output=True, text=True).stdout.strip()
        for path in checkouts
    ]
    text = (
        f"Two checkouts in alternating order, {arguments.rounds} rounds, one CPU thread ({date.today()}): {commits[0]} before, "
        f"{commits[1]} after. Medians.\n\n{table(found)}\n"
    )
    sys.stdout.write(text)
    if arguments.output:
        arguments.output.write_text(f"# Side by side\n\n`python -m benchmarks.side_by_side BEFORE AFTER`\n\n{text}")


if __name__ == "__main__":
    main()
