"""Time of two checkouts in alternating order: start-up, a check, an update, an evaluation.

    python -m benchmarks.side_by_side BEFORE AFTER [--only NAME] [--rounds 5] [--output benchmarks/side_by_side.md]

BEFORE and AFTER are folders of the repository, of which the same commands are run in turn, so that a machine whose speed drifts
slows both. Only ratios of one table mean something.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

_RUN = (
    "prune --task.name ioi --task.size 200 --target.total 250 --train.steps 300 --train.validate_every 300 --train.save_every 300"
).split()
CASES: dict[str, tuple[list[str], int]] = {
    "a mistake on the command line": (["prune", "--train.stepz", "3"], 2),
    "`--help`": (["--help"], 0),
    "`check`": (["check", "--task.name", "ioi"], 0),
    "`prune`, 300 updates, whole command": (_RUN, 0),
    "`evaluate` of that run": (["evaluate", "RUN", "--draws", "20", "--groups", "16"], 0),
}
"""What is timed -> words of the command, and its exit code. RUN: the folder of the last run of this checkout."""
_UPDATES = "`prune`, seconds an update"


def seconds(checkout: Path, words: list[str], code: int, folder: Path) -> tuple[float, str]:
    """Run a command of a checkout; returns wall time and output."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "bigcircuit", *(str(folder) if word == "RUN" else word for word in words)]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    wall = time.perf_counter() - start
    if done.returncode != code:
        raise SystemExit(f"{checkout}: {' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return wall, done.stdout


def measure(checkouts: list[Path], rounds: int, folder: Path, only: str = "") -> dict[str, list[list[float]]]:
    """Wall times in seconds by case, for each checkout one a round; the order of the checkouts changes from round to round."""
    found: dict[str, list[list[float]]] = {name: [[], []] for name in [*CASES, _UPDATES] if only in name}
    for turn in range(rounds):
        for name, (words, code) in CASES.items():
            if name not in found:
                continue
            for place in (0, 1) if turn % 2 else (1, 0):
                own = folder / f"{place}-{turn}"
                more = ["--output", str(own)] if words[0] == "prune" and not code else []
                wall, said = seconds(checkouts[place], [*words, *more], code, own)
                found[name][place].append(wall)
                # Checkouts before the change of this line wrote `step 300/300  18.2 steps/s  ...`.
                if rate := re.findall(r"300/300(?: steps, [^\n]*?,)? +([\d.]+) steps/s", said):
                    found[_UPDATES][place].append(1 / float(rate[-1]))
    return found


def table(found: dict[str, list[list[float]]]) -> str:
    """Medians and the ratio of the medians, with the lowest and highest ratio of a round."""
    rows = ["| what | before, s | after, s | after / before (rounds) |", "|---|---|---|---|"]
    for name, (before, after) in found.items():
        ratios = sorted(b / a for a, b in zip(before, after, strict=True))
        one, other = statistics.median(before), statistics.median(after)
        rows.append(f"| {name} | {one:.3g} | {other:.3g} | {other / one:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |")
    return "\n".join(rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, metavar="BEFORE")
    parser.add_argument("after", type=Path, metavar="AFTER")
    parser.add_argument("--only", default="", help="part of the names of the cases to time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    checkouts = [arguments.before.resolve(), arguments.after.resolve()]
    with tempfile.TemporaryDirectory() as folder:
        found = measure(checkouts, arguments.rounds, Path(folder), arguments.only)
    names = [
        subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=path, capture_output=True, text=True).stdout.strip()
        for path in checkouts
    ]
    text = (
        f"Two checkouts in alternating order, {arguments.rounds} rounds, one CPU thread ({date.today()}): {names[0]} before, "
        f"{names[1]} after. Medians.\n\n{table(found)}\n"
    )
    sys.stdout.write(text)
    if arguments.output:
        arguments.output.write_text(f"# Side by side\n\n`python -m benchmarks.side_by_side BEFORE AFTER`\n\n{text}")


if __name__ == "__main__":
    main()
