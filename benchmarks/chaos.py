"""Disturb prunes and sweeps at random moments, type the same command again, and compare with the undisturbed run to the byte.

Beside reliability.py and sweep_faults.py, which measure what single faults cost, this is about how many of many end right. Each row
is written when it has been measured.

    python -m benchmarks.chaos [--only WORD] [--times 10] [--seed 0]
"""

import argparse
import os
import random
import signal
import subprocess
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psutil

from benchmarks import sweep_faults
from bigcircuit.distributed.ranks import Ranks
from tests.helpers import interrupted_runs
from tests.helpers.bad_disks import disk
from tests.helpers.interrupted_runs import Job, Result, run_or_resume
from tests.helpers.sweep_processes import (
    rank_processes,
    run_sweep_command,
    start_sweep,
    statuses_and_circuits,
    trials_csv,
    wait_until,
)

OUTPUT = Path(__file__).with_suffix(".md")
HEAD = (
    "| fault, at a random moment | times | exit codes of the disturbed command | after the same command again, as undisturbed |",
    "|---|---|---|---|",
)
ABOUT = """Prunes of 30 steps and sweeps of eight trials of 60 steps on the embedded model. "As undisturbed": for a prune,
circuit file, metrics.jsonl, examples.json and every number of the last checkpoint; for a sweep, statuses, circuit files and
trials.csv without the seconds. Exit code 0: the command itself went on to its end; negative: the signal that ended it."""
HELD_SECONDS = 4.0
"""For which a rank is held: less than the watchdog's timeout."""
CLOSING_SECONDS = 3.0
"""In which a prune writes its files after the circuit, at most."""


class Outcome(NamedTuple):
    """End of one disturbed command, and of the same command after it."""

    code: int
    equal: bool
    """Whether the second command left the bytes of the undisturbed run."""


Fault = Callable[[], Outcome]


class Prunes:
    """The undisturbed prune, and faults of prunes with the same settings."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder, self.rng, self.count = folder, rng, 0
        self.whole = run_or_resume(folder / "whole", Ranks())

    def group_sigterm(self) -> Outcome:
        """Send SIGTERM to the process group of a prune on two ranks: to the launcher and to all ranks."""
        output = self._new()
        ended = interrupted_runs.terminate(output, self.rng.randint(1, 26), everybody=True)
        return self._again(output, ended.ending.code)

    def rank_killed(self) -> Outcome:
        """Kill one of two ranks."""
        output = self._new()
        ended = interrupted_runs.lose(
            output, self.rng.randint(0, 1), self.rng.randint(1, 26), pause=self.rng.random() / 10
        )
        return self._again(output, ended.ending.code)

    def rank_held(self) -> Outcome:
        """Hold one of two ranks for less than the watchdog's timeout, and let it go on."""
        output = self._new()
        with Job(output) as job:
            job.wait_for(self.rng.randint(1, 20))
            rank = job.rank(self.rng.randint(0, 1))
            job.signal(signal.SIGSTOP, rank)
            time.sleep(HELD_SECONDS)
            job.signal(signal.SIGCONT, rank)
            code = job.end().code
        return self._again(output, code)

    def killed_at_the_end(self) -> Outcome:
        """Kill a prune in one process while it writes its circuit, examples, report and summary."""
        output = self._new()
        with Job(output, launcher="none") as job:
            wait_until(lambda: (output / "circuit.safetensors").exists() or job.step() >= 30)
            time.sleep(self.rng.uniform(0, CLOSING_SECONDS))
            with suppress(psutil.NoSuchProcess):
                job.signal(signal.SIGKILL, *job.all()[:1])
            code = job.end().code
        return self._again(output, code)

    def disk_filled(self) -> Outcome:
        """Fill the disk of a prune in one process after a step; make room again before the second command."""
        folder = self._new()
        folder.mkdir()
        with disk(folder / "disk", "3m") as small:
            fault = ("full_disk", {"step": self.rng.randint(0, 29), "folder": str(small.path)})
            with Job(small.path / "run", launcher="none", fault=fault, inside=small.inside, log=folder / "log") as job:
                code = job.end().code
            (small.seen / "filler").unlink()
            with Job(small.path / "run", launcher="none", inside=small.inside, log=folder / "log") as job:
                job.end()
            return Outcome(code, self._equal(small.seen / "run"))

    def _again(self, output: Path, code: int) -> Outcome:
        interrupted_runs.finish(output, launcher="none")
        return Outcome(code, self._equal(output))

    def _equal(self, output: Path) -> bool:
        same = Result.of(output).equals(Result.of(self.whole)) and (output / "report.html").exists()
        left = [path for path in output.rglob("*.tmp")]
        return (
            same and not left and (output / "examples.json").read_bytes() == (self.whole / "examples.json").read_bytes()
        )

    def _new(self) -> Path:
        self.count += 1
        return self.folder / f"{self.count:03d}"


class Sweeps(sweep_faults.Bench):
    """The undisturbed sweep, and faults of sweeps with the same config."""

    def disturbed(self, disturb: Callable[["subprocess.Popen[str]"], None]) -> Outcome:
        """Disturb a sweep at a random moment after its first update, wait for its end and run the same command again."""
        output = self.folder / f"chaos-{self.rng.random()}"
        process = start_sweep(self.config, output)
        self.wait(output, process)
        return self._again(output, process, disturb)

    def killed_at_the_end(self) -> Outcome:
        """Kill a sweep while it writes the tables, the front and the report."""
        output = self.folder / f"end-{self.rng.random()}"
        process = start_sweep(self.config, output)
        wait_until(lambda: (output / "trials.csv").exists(), process)
        time.sleep(self.rng.uniform(0, 1))
        return self._again(output, process, lambda process: process.kill())

    def _again(
        self, output: Path, process: "subprocess.Popen[str]", disturb: Callable[["subprocess.Popen[str]"], None]
    ) -> Outcome:
        disturb(process)
        process.communicate()
        run_sweep_command(self.config, output)
        whole = self.folder / "undisturbed"
        equal = all(seen(output) == seen(whole) for seen in (statuses_and_circuits, trials_csv))
        return Outcome(process.returncode, equal and (output / "report.html").exists())


def kill_child(process: "subprocess.Popen[str]", name: str) -> None:
    """Kill the process of this name among the descendants of a sweep."""
    next(child for child in psutil.Process(process.pid).children(recursive=True) if child.name() == name).kill()


def prune_faults(folder: Path, arguments: Namespace) -> Mapping[str, Fault]:
    """Faults of prunes, by the name of their row."""
    prunes = Prunes(folder, random.Random(arguments.seed))
    return {
        "prune on two ranks: SIGTERM to the process group": prunes.group_sigterm,
        "prune on two ranks: `kill -9` of a rank": prunes.rank_killed,
        f"prune on two ranks: a rank held by SIGSTOP for {HELD_SECONDS:.0f} s, which goes on": prunes.rank_held,
        "prune: `kill -9` while circuit, report and summary are written": prunes.killed_at_the_end,
        "prune: the disk fills": prunes.disk_filled,
    }


def sweep_faults_of(folder: Path, arguments: Namespace) -> Mapping[str, Fault]:
    """Faults of sweeps, by the name of their row."""
    sweeps = Sweeps(folder, Namespace(seed=arguments.seed, steps=60))
    return {
        "sweep: SIGTERM to the process group": lambda: sweeps.disturbed(lambda p: os.killpg(p.pid, signal.SIGTERM)),
        "sweep: Ray's raylet killed": lambda: sweeps.disturbed(lambda p: kill_child(p, "raylet")),
        "sweep: Ray's head process killed": lambda: sweeps.disturbed(lambda p: kill_child(p, "gcs_server")),
        "sweep: a model worker killed": lambda: sweeps.disturbed(lambda p: sweeps.rng.choice(rank_processes(p)).kill()),
        "sweep: `kill -9` while tables and report are written": sweeps.killed_at_the_end,
    }


def rows(folder: Path, arguments: Namespace) -> Iterator[str]:
    """Make the faults and yield the rows of the table."""
    for kind, faults_of in (("prune", prune_faults), ("sweep", sweep_faults_of)):
        if arguments.only and not arguments.only.startswith(kind):
            continue
        (folder / kind).mkdir()
        for name, fault in faults_of(folder / kind, arguments).items():
            if arguments.only in name:
                seen = [fault() for _ in range(arguments.times)]
                codes = ", ".join(
                    f"{code} ({times})" for code, times in Counter(one.code for one in seen).most_common()
                )
                yield f"| {name} | {len(seen)} | {codes} | {sum(one.equal for one in seen)} of {len(seen)} |"


def main() -> None:
    """Measure and write the table; rows of earlier calls are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name contains this; it begins with prune or sweep")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    before = OUTPUT.read_text().splitlines() if OUTPUT.is_file() else []
    kept = {line.split(" | ")[0]: line for line in before if line.startswith(("| prune", "| sweep"))}
    with TemporaryDirectory() as folder:
        for row in rows(Path(folder), arguments):
            print(row, flush=True)  # noqa: T201
            kept[row.split(" | ")[0]] = row
            OUTPUT.write_text("\n".join([f"# Chaos, {date.today()}", "", ABOUT, "", *HEAD, *kept.values()]) + "\n")


if __name__ == "__main__":
    main()
