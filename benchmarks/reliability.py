"""Inject faults into short runs on two CPU ranks, often enough to trust the figures.

Each row of the table is written as soon as it is measured, so an interrupted benchmark keeps its results.

    python -m benchmarks.reliability [--only WORD] [--kills 20] [--damages 1000] [--steps 2000]
"""

import argparse
import json
import random
import shutil
import signal
import statistics
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from bigcircuit.distributed.ranks import Ranks
from bigcircuit.distributed.watchdog import TIMEOUT
from bigcircuit.io import checkpoint
from tests.helpers import interrupted_runs
from tests.helpers.bad_disks import damages, disk
from tests.helpers.crash_points import crash_everywhere
from tests.helpers.interrupted_runs import Interruption, Job, Result, Stop, run_or_resume, states_equal, states_of

OUTPUT = Path(__file__).with_suffix(".md")
HEAD = (
    "| fault | times | what came of it | seconds from the fault to the end, median (most) |",
    "|---|---|---|---|",
)


Lost = tuple[int, Interruption, Result]
"""(lost rank, how the job ended, result after resuming)."""


def spread(seconds: Sequence[float]) -> str:
    """Format the median and the largest value."""
    return f"{statistics.median(seconds):.1f} ({max(seconds):.1f})"


class Row(NamedTuple):
    """Row of the table."""

    fault: str
    times: int
    outcome: str
    seconds: str = ""


class Bench:
    """Faults, each a method that returns its rows."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder, self.arguments = folder, arguments
        self.whole = run_or_resume(folder / "undisturbed", Ranks(), train__keep_checkpoints=100)
        self.result, self.states = Result.of(self.whole), states_of(self.whole / "checkpoints")
        self.rng = random.Random(0)

    def stops_alone(self) -> list[Row]:
        """Stop and resume at every step of a run of 30 steps, on one process."""
        seen = interrupted_runs.stop_and_resume(Ranks(), self._new(), range(1, 30))
        return [self._stops("stopped after every step of 30 and resumed, one process", seen)]

    def stops_on_two(self) -> list[Row]:
        """Stop and resume at every step on two ranks, and from two ranks to one and back."""
        folder = self._new()
        arguments = {"folder": str(folder), "steps": list(range(1, 30)), "mixed": True}
        with Job(folder / "series", fault=("stops", arguments)) as job:
            job.end()
        seen = json.loads((folder / "stops.json").read_text())
        return [
            self._stops("the same, two ranks", [Stop(*one) for one in seen["stops"]]),
            self._stops("two ranks until step 10, one until 20, two until 30", [Stop(*seen["mixed"])]),
        ]

    def _stops(self, name: str, seen: Sequence[Stop]) -> Row:
        same = sum(stop.same_circuit and stop.same_metrics for stop in seen)
        most = max(stop.difference for stop in seen)
        outcome = f"{same} of {len(seen)} same circuit file and metrics; largest difference of a gate, moment or dual {most:g}"
        return Row(name, len(seen), outcome)

    def kills(self) -> list[Row]:
        """Send SIGKILL to either rank at a random moment."""
        seen: list[Lost] = []
        for index in range(self.arguments.kills):
            folder, launcher = self._new() / "run", ("torchrun", "deepspeed")[index % 2]
            rank, step, pause = index // 2 % 2, self.rng.randint(1, 26), self.rng.random() / 10
            seen.append(
                (
                    rank,
                    interrupted_runs.lose(folder, rank, step, pause=pause, launcher=launcher),
                    interrupted_runs.finish(folder),
                )
            )
        steps = [lost.step for _, lost, _ in seen]
        name = f"`kill -9` of a rank after a random step, {min(steps)} to {max(steps)}; torchrun and deepspeed"
        return [self._losses(name, seen)]

    def held(self) -> list[Row]:
        """Send SIGSTOP to either rank, or let the main thread of a rank sleep forever."""
        held: list[Lost] = []
        asleep: list[Lost] = []
        for rank in (0, 1, 0, 1):
            folder = self._new()
            held.append(
                (
                    rank,
                    interrupted_runs.lose(folder / "a", rank, 20, signal.SIGSTOP),
                    interrupted_runs.finish(folder / "a"),
                )
            )
            with Job(folder / "b", fault=("sleep", {"rank": rank, "step": 20, "timeout": TIMEOUT})) as job:
                job.wait_for(20)
                job.signal(0, job.rank(rank))  # signal 0 changes nothing: the clock starts here
                lost = job.interruption()
            asleep.append((rank, lost, interrupted_runs.finish(folder / "b")))
        return [
            self._losses("a rank held by SIGSTOP", held),
            self._losses("a rank whose main thread sleeps for ever", asleep),
        ]

    def _losses(self, name: str, seen: Sequence[Lost]) -> Row:
        named = sum(f"rank {rank} " in lost.text and "its last line: " in lost.text for rank, lost, _ in seen)
        failed = sum(lost.ending.code != 0 for _, lost, _ in seen)
        same = sum(self._same(found) for *_, found in seen)
        outcome = (
            f"{named} of {len(seen)} named the rank and its last line, {failed} ended non-zero, {same} same sha256 of the "
            "final circuit after resuming"
        )
        return Row(name, len(seen), outcome, spread([lost.ending.seconds for _, lost, _ in seen]))

    def terminated(self) -> list[Row]:
        """Send SIGTERM to the launcher or to all processes, once or three times."""
        rows = []
        for name, launcher, everybody, times in (
            ("SIGTERM to torchrun", "torchrun", False, 1),
            ("SIGTERM three times to all processes, torchrun", "torchrun", True, 3),
            ("SIGTERM twice to all processes, deepspeed", "deepspeed", True, 2),
        ):
            seen = []
            for _ in range(5):
                folder = self._new() / "run"
                stopped = interrupted_runs.terminate(
                    folder, self.rng.randint(1, 24), everybody, times, launcher=launcher
                )
                seen.append((stopped, interrupted_runs.finish(folder)))
            saved = sum(stopped.saved == stopped.step for stopped, _ in seen)
            same = sum(self._same(found) for _, found in seen)
            outcome = f"{saved} of {len(seen)} saved the step they had reached, {same} same sha256 after resuming"
            rows.append(Row(name, len(seen), outcome, spread([stopped.ending.seconds for stopped, _ in seen])))
        return rows

    def crashes_of_a_save(self) -> list[Row]:
        """Crash at every file operation of a save."""
        folder = self._new() / "checkpoints"
        before, after = self.states["step-000028"], self.states["step-000030"]

        def prepare() -> None:
            shutil.rmtree(folder, ignore_errors=True)
            for name in ("step-000024", "step-000028"):
                shutil.copytree(self.whole / "checkpoints" / name, folder / name)

        old = new = times = 0
        for _ in crash_everywhere(lambda: checkpoint.save(folder, 30, after, 2), prepare):
            found = checkpoint.load_newest(folder, interrupted_runs.unexpected)
            old, new, times = old + states_equal(found, before), new + states_equal(found, after), times + 1
        outcome = (
            f"loaded {old} times the state before and {new} times the new one, bit for bit; {times - old - new} other"
        )
        name = "a crash at every write, sync, rename and removal of a save, with half of what was not synced gone"
        return [Row(name, times, outcome)]

    def crashes_of_a_run(self) -> list[Row]:
        """Crash at every file operation of a whole run."""
        short = {"train__steps": 2, "train__save_every": 1}
        result, run = Result.of(run_or_resume(self._new() / "whole", Ranks(), **short)), self._new() / "run"
        seen = []
        for _ in crash_everywhere(
            lambda: run_or_resume(run, Ranks(), **short), lambda: shutil.rmtree(run, ignore_errors=True)
        ):
            found = Result.of(run_or_resume(run, Ranks(), **short))
            same = (found.circuit, found.metrics) == (result.circuit, result.metrics)
            seen.append(same and not list(run.rglob("*.tmp")))
        outcome = (
            f"{sum(seen)} of {len(seen)} finished by the same command: same circuit and metrics, nothing left over"
        )
        return [Row("the same of all that a run of 2 steps writes, one process", len(seen), outcome)]

    def damaged(self) -> list[Row]:
        """Damage checkpoints at random places."""
        folder = self._new()
        for name in ("step-000020", "step-000024", "step-000028"):
            shutil.copytree(self.whole / "checkpoints" / name, folder / "three" / name)
        seen = list(damages(folder / "three", folder, self.arguments.damages, seed=0))
        missed = sum(not damage.found for damage in seen)
        kinds = ", ".join(dict.fromkeys(damage.kind for damage in seen))
        outcome = f"{missed} of {len(seen):,} missed; each named in a message, the newest whole one loaded bit for bit"
        return [Row(f"random damage of one or two of three checkpoints: {kinds}", len(seen), outcome)]

    def refused(self) -> list[Row]:
        """Run two ranks on a full disk and on a read-only disk."""
        rows = []
        for name, step, log_every in (
            ("disk full at a line of metrics.jsonl", 9, 1),
            ("disk full at a checkpoint", 10, 100),
            ("disk full before the last update", 29, 100),
        ):
            folder = self._new()
            with disk(folder / "disk", "3m") as small:
                options = {"inside": small.inside, "log": folder / "log", "train__log_every": log_every}
                fault = ("full_disk", {"step": step, "folder": str(small.path)})
                with Job(small.path / "run", fault=fault, **options) as job:
                    ending = job.end()
                found = checkpoint.load_newest(small.seen / "run/checkpoints", interrupted_runs.unexpected)
                kept = states_equal(found, self.states[f"step-{step // 4 * 4:06d}"])
                (small.seen / "filler").unlink()
                with Job(small.path / "run", **options) as job:
                    job.end()
                same = Result.of(small.seen / "run").circuit == self.result.circuit
            rows.append(self._refusal(name, small.path, ending, kept, same))
        folder = self._new()
        interrupted_runs.stop(folder / "run", Ranks(), 10)
        with disk(folder / "disk", "3m") as small:
            shutil.copytree(folder / "run", small.seen / "run")
            small.make_read_only()
            with Job(small.path / "run", inside=small.inside, log=folder / "log") as job:
                ending = job.end()
            found = checkpoint.load_newest(small.seen / "run/checkpoints", interrupted_runs.unexpected)
            kept = states_equal(found, states_of(folder / "run/checkpoints")["step-000010"])
        same = Result.of(run_or_resume(folder / "run", Ranks())).circuit == self.result.circuit
        return [*rows, self._refusal("read-only disk", small.path, ending, kept, same)]

    def _refusal(self, name: str, where: Path, ending: interrupted_runs.Ending, kept: bool, same: bool) -> Row:
        (line,) = ending.lines
        said = line.removeprefix("bigcircuit: ").replace(f"{where}/", "")
        untouched, circuit = "untouched" if kept else "CHANGED", "same" if same else "ANOTHER"
        outcome = (
            f"one line, `{said}`; ended non-zero; checkpoint before it {untouched}; {circuit} circuit after resuming"
        )
        assert ending.code != 0
        return Row(name, 1, outcome)

    def not_a_number(self) -> list[Row]:
        """Let the loss of one rank become NaN."""
        stopped = same = 0
        places = ((3, 0), (12, 1), (17, 0), (28, 1))
        for step, rank in places:
            folder = self._new()
            fault = ("not_a_number", {"rank": rank, "step": step, "folder": str(folder)})
            with Job(folder / "run", fault=fault) as job:
                found = job.interruption()
            one, other = (json.loads((folder / f"rank-{number}.json").read_text()) for number in (0, 1))
            told = f"step {step + 1}: the loss or its gradient is not finite" in found.text
            stopped += one == other and one["step"] == step and found.ending.code != 0 and told
            same += self._same(interrupted_runs.finish(folder / "run"))
        outcome = (
            f"{stopped} of {len(places)} stopped both ranks before the same update, gates equal; {same} same sha256 after "
            "resuming without it"
        )
        return [Row("NaN in the loss of one rank", len(places), outcome)]

    def memory(self) -> list[Row]:
        """Measure resident memory over many steps."""
        folder, steps = self._new(), self.arguments.steps
        fault = ("memory", {"steps": [steps // 10, steps], "folder": str(folder)})
        overrides = {"train__steps": steps, "train__save_every": 20, "train__validate_every": 100}
        with Job(folder / "run", fault=fault, **overrides) as job:
            job.end()
        sizes = [json.loads((folder / f"rank-{rank}.json").read_text()).values() for rank in (0, 1)]
        shown = "; ".join("rank {}: {:.1f} and {:.1f} MiB".format(rank, *pair) for rank, pair in enumerate(sizes))
        outcome = f"resident memory after {steps // 10} and {steps:,} steps: {shown}"
        return [Row(f"{steps:,} steps with {steps // 20} checkpoints", 1, outcome)]

    def _new(self) -> Path:
        folder = Path(self.folder, f"{len(list(self.folder.iterdir())):03d}")
        folder.mkdir()
        return folder

    def _same(self, found: Result) -> bool:
        return (found.circuit, found.metrics) == (self.result.circuit, self.result.metrics)


FAULTS: tuple[Callable[[Bench], list[Row]], ...] = (
    Bench.damaged, Bench.crashes_of_a_save, Bench.crashes_of_a_run, Bench.refused, Bench.stops_alone, Bench.stops_on_two,
    Bench.kills, Bench.held, Bench.terminated, Bench.not_a_number, Bench.memory,
)  # fmt: skip


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", default="", help="faults whose name contains this; their rows are shown and not written"
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--damages", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        f"# Faults, {date.today()}",
        "",
        "The model of the quickstart, runs of 30 steps on two processes on two cores unless said otherwise, one thread each. "
        f"A rank counts as hung after {TIMEOUT:.0f} s.",
        "",
        *HEAD,
    ]
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments)
        for fault in FAULTS:
            if arguments.only in fault.__name__:
                rows = [f"| {r.fault} | {r.times:,} | {r.outcome} | {r.seconds} |" for r in fault(bench)]
                lines += rows
                print(*rows, sep="\n", flush=True)  # noqa: T201
                if not arguments.only:
                    OUTPUT.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
