"""Fuzz by hand, and write the table: `python -m tests.fuzz --inputs 10000 [--only KIND] [--first SEED] [--base DIR] [--write]`.

A call whose first seed is the number of inputs in the row of its kind goes on: both are added up.
"""

import argparse
import sys
import time
from collections import Counter
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.harness import Failure, run_input
from tests.fuzz.kinds import COSTS, KINDS, prepare

TABLE = Path(__file__).parents[2] / "benchmarks/reliability.md"
TITLE = "## Inputs of others"


def main() -> None:
    """Run inputs of every kind, print failures as they come and the table at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000, help="inputs of each kind; fewer of those that take long")
    parser.add_argument("--only", choices=KINDS, help="one kind alone")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--base", type=Path, help="folder in which what is damaged is kept for further calls")
    parser.add_argument(
        "--write", action="store_true", help="write rows into benchmarks/reliability.md; those of other kinds are kept"
    )
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        prepare(given.base or Path(folder) / "base")
        for name in [given.only] if given.only else KINDS:
            failures, start = [], time.process_time()
            inputs = max(1, given.inputs // COSTS.get(name, 1))
            for seed in range(given.first, given.first + inputs):
                failure = run_input(name, KINDS[name], seed, Path(folder) / "input")
                if failure:
                    failures.append(failure)
                    sys.stdout.write(f"{failure.kind} {failure.seed}: {failure.what}\n")
                    sys.stdout.flush()
            seconds = time.process_time() - start
            sys.stdout.write(f"{name}: {len(failures):,} of {inputs:,} failed; {_common(failures)} {seconds:.0f} s\n")
            if given.write:
                _write(name, inputs, len(failures), _common(failures), given.first)


def _write(name: str, inputs: int, failures: int, common: str, first: int) -> None:
    """Write the row of a kind, in the order of KINDS, and the sum of all inputs. first: seed that the inputs begin with."""
    before, _, old = TABLE.read_text().partition(TITLE)
    rows = {line.split("|")[1].strip(): line for line in old.splitlines() if line.startswith("| ")}
    if first and name in rows and (known := _numbers(rows[name]))[0] == first:
        inputs, failures, common = inputs + known[0], failures + known[1], common or rows[name].split("|")[4].strip()
    rows[name] = f"| {name} | {inputs:,} | {failures:,} | {common} |"
    kept = [rows[kind] for kind in KINDS if kind in rows]
    inputs, failures = map(sum, zip(*map(_numbers, kept), strict=True))
    about = (
        f"{TITLE}, {date.today()}\n\nRandom damage of valid files and random words, `python -m tests.fuzz --only KIND --inputs N "
        "--write`. A failure is an error that is not the project's own, more than 5 s of CPU, more than 1 GiB of memory, or a file "
        f"written outside the folder of the input: {failures:,} of {inputs:,}."
    )
    table = "\n".join(["| input | inputs | failures | the most frequent |", "|---|---|---|---|", *kept])
    TABLE.write_text(f"{before.rstrip()}\n\n{about}\n\n{table}\n")


def _numbers(row: str) -> tuple[int, int]:
    """Read inputs and failures from a row."""
    inputs, failures = (int(cell.replace(",", "")) for cell in row.split("|")[2:4])
    return inputs, failures


def _common(failures: list[Failure]) -> str:
    found = Counter(failure.what.partition(":")[0] for failure in failures).most_common(2)
    return ", ".join(f"{what} {count}" for what, count in found)


if __name__ == "__main__":
    main()
