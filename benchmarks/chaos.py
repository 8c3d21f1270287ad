"""Disturb prunes and sweeps at random moments, type the same command again, and compare with the undisturbed run to the byte.

Beside reliability.py and sweep_faults.py, which measure what single faults cost, this is about how many of many end right. An
attempt has the seed of its row and number, and its row is written when it has ended; later calls go on after the attempts that
the table has.

    python -m benchmarks.chaos [--only WORD] [--times 10]
"""

import argparse
import os
import random
import re
import signal
import subprocess
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psutil

from benchmarks import sweep_faults
from benchmarks.sweep_faults import two_nodes
from bigcircuit.distributed.ranks import Ranks
from tests.helpers import interrupted_runs
from tests.helpers.bad_disks import Disk, disk
from tests.helpers.interrupted_runs import Job, Result, run_or_resume
from tests.helpers.patience import wait_for_end
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
CLOSING_SECONDS = 0.5
"""Most seconds after a file of the end has appeared until the process is killed."""
DISK, MOMENTS = "3m", 20
"""Size of the disk that fills, and at how many moments of a run it does."""
TRIES = 5
"""Times that a fault may come too late, in one attempt."""


class Outcome(NamedTuple):
    """End of one disturbed command, and of the same command after it."""

    code: int
    equal: bool
    """Whether the second command left the bytes of the undisturbed run."""


class TooLateError(Exception):
    """The command had ended before it could be disturbed."""


Fault = Callable[[int], Outcome]
"""Disturb a command; the argument is the number of the attempt."""


class Prunes:
    """The undisturbed prune, and faults of prunes with the same settings."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rng, self.count = folder, random.Random(), 0
        self.whole = run_or_resume(folder / "whole", Ranks())
        self._writes = 0

    def group_sigterm(self, _: int) -> Outcome:
        """Send SIGTERM to the process group of a prune on two ranks: to the launcher and to all ranks."""
        output = self._new()
        ended = interrupted_runs.terminate(output, self.rng.randint(1, 26), everybody=True)
        return self._again(output, ended.ending.code)

    def rank_killed(self, _: int) -> Outcome:
        """Kill one of two ranks."""
        output = self._new()
        ended = interrupted_runs.lose(
            output, self.rng.randint(0, 1), self.rng.randint(1, 26), pause=self.rng.random() / 10
        )
        return self._again(output, ended.ending.code)

    def rank_held(self, _: int) -> Outcome:
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

    def killed_at_the_end(self, _: int) -> Outcome:
        """Kill a prune in one process while it writes its circuit, examples, report and summary."""
        output, last = self._new(), self.rng.choice(("circuit.safetensors", "examples.json", "report.html"))
        with Job(output, launcher="none") as job:
            while not (output / last).exists():
                job.look()
            time.sleep(self.rng.uniform(0, CLOSING_SECONDS))
            with suppress(psutil.NoSuchProcess):
                job.signal(signal.SIGKILL, *job.all()[:1])
            code = job.end().code
        return self._again(output, code)

    def disk_filled(self, number: int) -> Outcome:
        """Fill the disk of a prune in one process when it opens a file; make room again before the second command."""
        if not self._writes:
            with disk(self._new(), DISK) as small:
                self._on_disk(small, 0)
                self._writes = int((small.seen / "writes").read_text())
        with disk(self._new(), DISK) as small:
            code = self._on_disk(small, 1 + number % MOMENTS * (self._writes - 1) // (MOMENTS - 1))
            (small.seen / "filler").unlink()
            self._on_disk(small, 0)
            return Outcome(code, self._equal(small.seen / "run"))

    def _on_disk(self, small: Disk, write: int) -> int:
        fault = ("full_disk_at", {"write": write, "folder": str(small.path)})
        log = self.folder / f"{self.count:03d}.log"
        with Job(small.path / "run", launcher="none", fault=fault, inside=small.inside, log=log) as job:
            return job.end().code

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

    def disturbed(self, disturb: Callable[["subprocess.Popen[str]"], None], _: int) -> Outcome:
        """Disturb a sweep at a random moment after its first update, wait for its end and run the same command again."""
        process, output = self._start()
        with self._ended_before():
            self.wait(output, process)
            disturb(process)
        return self._again(output, process)

    def killed_at_the_end(self, _: int) -> Outcome:
        """Kill a sweep while it writes the tables, the front and the report."""
        process, output = self._start()
        with self._ended_before():
            wait_until(lambda: (output / "trials.csv").exists(), process)
        time.sleep(self.rng.uniform(0, CLOSING_SECONDS))
        process.kill()
        return self._again(output, process)

    def node_lost(self, _: int) -> Outcome:
        """Remove the node that holds the workers from a cluster of two nodes."""
        with two_nodes() as (cluster, second):
            process, output = self._start("--address", cluster.address)
            with self._ended_before():
                self.wait(output, process)
                cluster.remove_node(second, allow_graceful=False)
            return self._again(output, process, "--address", cluster.address)

    def _start(self, *words: str) -> tuple["subprocess.Popen[str]", Path]:
        output = self.folder / f"chaos-{self.rng.random()}"
        return start_sweep(self.config, output, *words), output

    @contextmanager
    def _ended_before(self) -> Iterator[None]:
        try:
            yield
        except (AssertionError, psutil.Error, StopIteration) as error:
            raise TooLateError from error

    def _again(self, output: Path, process: "subprocess.Popen[str]", *words: str) -> Outcome:
        wait_for_end(process)
        run_sweep_command(self.config, output, *words)
        whole = self.folder / "undisturbed"
        equal = all(seen(output) == seen(whole) for seen in (statuses_and_circuits, trials_csv))
        return Outcome(process.returncode, equal and (output / "report.html").exists())


def kill_child(process: "subprocess.Popen[str]", name: str) -> None:
    """Kill the process of this name among the descendants of a sweep."""
    next(child for child in psutil.Process(process.pid).children(recursive=True) if child.name() == name).kill()


def prune_faults(prunes: Prunes) -> Mapping[str, Fault]:
    """Faults of prunes, by the name of their row."""
    return {
        "prune on two ranks: SIGTERM to the process group": prunes.group_sigterm,
        "prune on two ranks: `kill -9` of a rank": prunes.rank_killed,
        f"prune on two ranks: a rank held by SIGSTOP for {HELD_SECONDS:.0f} s, which goes on": prunes.rank_held,
        "prune: `kill -9` while circuit, report and summary are written": prunes.killed_at_the_end,
        f"prune: the disk fills, at {MOMENTS} moments from the first file to the last": prunes.disk_filled,
    }


def sweep_faults_of(sweeps: Sweeps) -> Mapping[str, Fault]:
    """Faults of sweeps, by the name of their row."""
    kinds: dict[str, Callable[[subprocess.Popen[str]], None]] = {
        "sweep: SIGTERM to the process group": lambda process: os.killpg(process.pid, signal.SIGTERM),
        "sweep: Ray's raylet killed": lambda process: kill_child(process, "raylet"),
        "sweep: Ray's head process killed": lambda process: kill_child(process, "gcs_server"),
        "sweep: a model worker killed": lambda process: sweeps.rng.choice(rank_processes(process)).kill(),
    }
    return {
        **{name: partial(sweeps.disturbed, disturb) for name, disturb in kinds.items()},
        "sweep: one of two nodes lost": sweeps.node_lost,
        "sweep: `kill -9` while tables and report are written": sweeps.killed_at_the_end,
    }


class Row(NamedTuple):
    """Row of the table."""

    codes: Counter[int]
    equal: int

    @classmethod
    def read(cls, line: str) -> "Row":
        """Read a line of the table."""
        _, _, _, codes, equal, _ = line.split("|")
        pairs = re.findall(r"(-?\d+) \((\d+)\)", codes)
        return cls(Counter({int(code): int(times) for code, times in pairs}), int(equal.split()[0]))

    def write(self, name: str) -> str:
        """Write the line of a row."""
        times = self.codes.total()
        codes = ", ".join(f"{code} ({count})" for code, count in self.codes.most_common())
        return f"| {name} | {times} | {codes} | {self.equal} of {times} |"


def attempt(bench: Prunes | Sweeps, name: str, fault: Fault, number: int) -> Outcome:
    """Make an attempt; a fault that comes too late is made again at another moment."""
    bench.rng = random.Random(f"{name} {number}")
    for _ in range(TRIES):
        with suppress(TooLateError):
            return fault(number)
    raise AssertionError(f"{name}: the command always ends before")


def main() -> None:
    """Make attempts and write the table; those of earlier calls are kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name contains this; it begins with prune or sweep")
    parser.add_argument("--times", type=int, default=10, help="attempts of each row")
    arguments = parser.parse_args()
    lines = OUTPUT.read_text().splitlines() if OUTPUT.is_file() else []
    table = {line.split("|")[1].strip(): Row.read(line) for line in lines if line.startswith(("| prune", "| sweep"))}
    with TemporaryDirectory() as folder:
        for bench, faults in benches(Path(folder), arguments.only):
            for name, fault in faults.items():
                if arguments.only not in name:
                    continue
                for _ in range(arguments.times):
                    row = table.get(name, Row(Counter(), 0))
                    began = time.monotonic()
                    found = attempt(bench, name, fault, row.codes.total())
                    table[name] = Row(row.codes + Counter([found.code]), row.equal + found.equal)
                    print(f"{name}: {found}, {time.monotonic() - began:.0f} s", flush=True)  # noqa: T201
                    write_table(table)


def benches(folder: Path, only: str) -> Iterator[tuple[Prunes | Sweeps, Mapping[str, Fault]]]:
    """Make the undisturbed prune and sweep, and yield each with its faults."""
    if not only.startswith("sweep"):
        (folder / "prune").mkdir()
        prunes = Prunes(folder / "prune")
        yield prunes, prune_faults(prunes)
    if not only.startswith("prune"):
        (folder / "sweep").mkdir()
        sweeps = Sweeps(folder / "sweep", Namespace(seed=0, steps=60))
        yield sweeps, sweep_faults_of(sweeps)


def write_table(table: Mapping[str, Row]) -> None:
    """Write chaos.md, with the sum of all rows."""
    times, equal = sum(row.codes.total() for row in table.values()), sum(row.equal for row in table.values())
    lines = [row.write(name) for name, row in table.items()]
    total = f"{equal} of {times} ended as undisturbed."
    OUTPUT.write_text("\n".join([f"# Chaos, {date.today()}", "", f"{ABOUT} {total}", "", *HEAD, *lines]) + "\n")


if __name__ == "__main__":
    main()
