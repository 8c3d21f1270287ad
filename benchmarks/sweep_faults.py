"""Disturbed sweeps: sweeps of eight trials are interrupted, or lose a worker or a node, at random times; what each fault costs.

Each row of the table is written when it has been measured.

    python -m benchmarks.sweep_faults [--only WORD] [--times 10] [--steps 300]
"""

import argparse
import random
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import psutil

from bigcircuit.results.trial_record import read_trial_records
from tests.helpers.sweep_processes import (
    RANK,
    command_line,
    rank_processes,
    records_so_far,
    run_sweep_command,
    start_sweep,
    statuses_and_circuits,
    trials_csv,
    wait_until,
    write_sweep_config,
)

OUTPUT = Path(__file__).with_suffix(".md")
SPACE = {"penalty.mlp_neuron": [0.5, 4.0], "train.seed": [0, 1, 2, 3]}
HEAD = (
    "| fault | updates a trial | times | ended as undisturbed | updates, against undisturbed, mean (most) | seconds, likewise |",
    "|---|---|---|---|---|---|",
)


ABOUT = """Eight trials on the embedded model, two workers with four slots each; checkpoints every 20 updates.
Of a call that was cut off as many updates are counted as it can have made, 20 a trial at most. Seconds are of whole commands,
the second start included; the cluster that loses a node was there before."""


class Ended(NamedTuple):
    """Result of a disturbed sweep, against the undisturbed one."""

    equal: bool
    """Whether circuits and table are equal to the byte."""
    updates: float
    """Ratio of the updates, those included that were computed twice."""
    seconds: float
    """Ratio of the wall time."""


class Bench:
    """The undisturbed sweep, and the faults that disturb sweeps of the same config."""

    def __init__(self, folder: Path, arguments: argparse.Namespace) -> None:
        self.folder, self.rng = folder, random.Random(arguments.seed)
        steps = arguments.steps
        base = {"train.steps": steps, "train.validate_every": 20, "train.save_every": 20}
        self.config = write_sweep_config(folder, base, space=SPACE, slots=4, workers=2)
        began = time.monotonic()
        run_sweep_command(self.config, folder / "undisturbed")
        self.seconds = time.monotonic() - began
        self.updates = updates(folder / "undisturbed")
        self.work = 8 * steps

    def interrupted(self, number: int) -> Ended:
        """Send the sweep a signal at a random time after its first update, and resume it. number: of the signal."""
        output = self.folder / f"signal-{self.rng.random()}"
        began = time.monotonic()
        process = start_sweep(self.config, output)
        self.wait(output, process)
        assert process.poll() is None, "the signal came too late"
        process.send_signal(number)
        process.communicate()
        spent = time.monotonic() - began
        began = time.monotonic()
        run_sweep_command(self.config, output)
        return self.ended(output, spent + time.monotonic() - began)

    def without_a_worker(self) -> Ended:
        """Kill one of its two workers at a random time."""
        output = self.folder / f"worker-{self.rng.random()}"
        began = time.monotonic()
        process = start_sweep(self.config, output)
        self.wait(output, process)
        self.rng.choice(rank_processes(process)).kill()
        return self.ended(output, self.wait_for_success(process, began))

    def without_a_node(self) -> Ended:
        """Remove one of the two nodes of its cluster at a random time."""
        with two_nodes() as (cluster, second):
            output = self.folder / f"node-{self.rng.random()}"
            began = time.monotonic()
            process = start_sweep(self.config, output, "--address", cluster.address)
            self.wait(output, process)
            raylet = psutil.Process(second.all_processes["raylet"][0].process.pid)
            assert any(command_line(child).startswith(RANK) for child in raylet.children(recursive=True))
            cluster.remove_node(second, allow_graceful=False)
            return self.ended(output, self.wait_for_success(process, began))

    def wait(self, output: Path, process: "subprocess.Popen[str]") -> None:
        """Wait until a random share of all updates has been made. Fails if the process ends before."""
        share = self.rng.uniform(0.05, 0.8)
        wait_until(lambda: sum(record.step for record in records_so_far(output)) > share * self.work, process)
        time.sleep(self.rng.uniform(0, 0.5))

    def wait_for_success(self, process: "subprocess.Popen[str]", began: float) -> float:
        """Wait until the sweep succeeds. Returns the seconds since `began`."""
        said, _ = process.communicate()
        assert process.returncode == 0, said
        return time.monotonic() - began

    def ended(self, output: Path, seconds: float) -> Ended:
        """Compare a sweep's folder and wall time with the undisturbed sweep."""
        whole = self.folder / "undisturbed"
        equal = statuses_and_circuits(output) == statuses_and_circuits(whole) and trials_csv(output) == trials_csv(
            whole
        )
        return Ended(equal, updates(output) / self.updates, seconds / self.seconds)


@contextmanager
def two_nodes() -> Iterator[tuple[Any, Any]]:
    """Start a Ray cluster of two nodes with a CPU each; yields the cluster and the second node."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        yield cluster, second
    finally:
        cluster.shutdown()


def updates(output: Path) -> int:
    """Sum the updates of all trials, those included that were computed twice."""
    return sum(record.updates for record in read_trial_records(output))


def rows(bench: Bench, arguments: argparse.Namespace) -> Iterator[str]:
    """Measure the faults and yield the rows of the table."""
    faults: dict[str, Callable[[], Ended]] = {
        "SIGTERM, then the same command": lambda: bench.interrupted(signal.SIGTERM),
        "kill -9, then the same command": lambda: bench.interrupted(signal.SIGKILL),
        "one of two workers killed": bench.without_a_worker,
        "one of two nodes lost": bench.without_a_node,
    }
    for name, fault in faults.items():
        if arguments.only in name:
            found = [fault() for _ in range(arguments.times)]
            cells = [name, str(arguments.steps), str(len(found)), f"{sum(one.equal for one in found)} of {len(found)}"]
            for values in ([one.updates for one in found], [one.seconds for one in found]):
                cells.append(f"{statistics.mean(values):.2f} ({max(values):.2f})")
            yield "| " + " | ".join(cells) + " |"


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    before = OUTPUT.read_text().splitlines() if OUTPUT.is_file() else []
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments)
        for row in rows(bench, arguments):
            print(row, flush=True)  # noqa: T201
            before = [line for line in before if line.startswith("| ") and row.split("|")[1:3] != line.split("|")[1:3]]
            kept = [line for line in before if not line.startswith("| fault")]
            title = f"# Disturbed sweeps, {date.today()}\n\n{ABOUT}\n"
            before = [*kept, row]
            OUTPUT.write_text("\n".join([title, *HEAD, *before]) + "\n")


if __name__ == "__main__":
    main()
