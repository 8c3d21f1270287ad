"""Sweeps as processes, for tests and benchmarks: start them, wait for their progress, compare their results."""

import csv
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import psutil
import yaml

from bigcircuit.results.trial_record import read_trial_records
from tests.helpers.patience import Patience, wait_for_end
from tests.helpers.short_runs import QUICK

RANK = "ray::RankActor"
"""How Ray names the process of a rank."""
ROOT = Path(__file__).parents[2]
BASE = {**QUICK, "target.total": None, "train.steps": 40, "train.validate_every": 10, "train.save_every": 5}
SEARCH = {
    "space": {"penalty.mlp_neuron": [0.5, 4.0], "train.seed": [0, 1]},
    "search": "grid",
    "slots": 2,
    "workers": 2,
    "cpus": 1,
}
SECONDS = 180
"""Timeout of a wait for what is none of a sweep's own progress."""


def nested(flat):
    """Dotted keys -> nested dicts."""
    tree = {}
    for key, value in flat.items():
        *path, name = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[name] = value
    return tree


def write_sweep_config(folder, base=None, **search):
    """Write sweep.yaml; base: dotted settings of all trials, search: of the section `sweep`."""
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**nested({**BASE, **(base or {})}), "sweep": {**SEARCH, **search}}))
    return path


def command(config, output, *words):
    """The command line of a sweep."""
    return [sys.executable, str(ROOT / "launchers/sweep.py"), "--config", str(config), "--output", str(output), *words]


def start_sweep(config, output, *words):
    """Start a sweep in a process group of its own."""
    return subprocess.Popen(
        command(config, output, *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run_sweep_command(config, output, *words, code=0):
    """Run a sweep to its end, check its exit code and return its output.

    Left out are lines on how long something has taken so far, which phases of ten seconds have on a busy machine.
    """
    process = start_sweep(config, output, *words)
    said = wait_for_end(process)
    assert process.returncode == code, said
    return "".join(line for line in said.splitlines(keepends=True) if not line.endswith(" s so far\n"))


def wait_until(happened, process):
    """Wait for a true value and return it; fails if the process ends before or hangs."""
    patience = Patience(process.pid)
    while not (found := happened()):
        assert process.poll() is None and not patience.hangs(), "it did not happen"
        time.sleep(0.05)
    return found


def some_trial_reached(output, step):
    """Whether any trial has made so many updates."""
    return any(record.step >= step for record in records_so_far(output))


def records_so_far(output):
    """The trial records of a sweep that may not have begun."""
    return read_trial_records(output) if (output / "trials").is_dir() else []


def rank_processes(process):
    """The processes of the ranks that a sweep has started."""
    return [
        child for child in psutil.Process(process.pid).children(recursive=True) if command_line(child).startswith(RANK)
    ]


def command_line(process):
    """The words of a process; empty if it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def statuses_and_circuits(output):
    """Settings of a trial -> its status and the hash of its circuit."""
    return {
        tuple(sorted(record.settings.items())): (
            record.status,
            sha256((output / f"trials/{record.number:03d}/circuit.safetensors").read_bytes()).hexdigest(),
        )
        for record in read_trial_records(output)
    }


def trials_csv(output):
    """The rows of trials.csv without the seconds."""
    with (output / "trials.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
