"""Sweeps as processes, for tests and benchmarks: started, disturbed, and what they have found."""

import csv
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import psutil
import yaml

from bigcircuit.results.trial_record import read_trial_records
from tests.helpers.short_runs import QUICK

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


def nested(flat):
    tree = {}
    for key, value in flat.items():
        *path, name = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[name] = value
    return tree


def written(folder, base=None, **search):
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({**nested({**BASE, **(base or {})}), "sweep": {**SEARCH, **search}}))
    return path


def command(config, output, *words):
    return [sys.executable, str(ROOT / "launchers/sweep.py"), "--config", str(config), "--output", str(output), *words]


def start(config, output, *words):
    return subprocess.Popen(
        command(config, output, *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def to_the_end(config, output, *words, code=0):
    process = start(config, output, *words)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == code, said
    return said


def until(happened, process=None):
    end = time.monotonic() + SECONDS
    while not (found := happened()):
        assert time.monotonic() < end and (process is None or process.poll() is None), "it did not happen"
        time.sleep(0.05)
    return found


def some_trial_has_made(output, step):
    return any(record.step >= step for record in safely_read(output))


def safely_read(output):
    return read_trial_records(output) if (output / "trials").is_dir() else []


def ranks_of(process):
    """The processes that hold copies of the model."""
    return [
        child for child in psutil.Process(process.pid).children(recursive=True) if named(child).startswith("ray::Rank")
    ]


def named(process):
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def what_was_found(output):
    """By the settings: the status and the hash of the circuit."""
    return {
        tuple(sorted(record.settings.items())): (
            record.status,
            sha256((output / f"trials/{record.number:03d}/circuit.safetensors").read_bytes()).hexdigest(),
        )
        for record in read_trial_records(output)
    }


def table(output):
    """trials.csv without what depends on how the sweep went."""
    with (output / "trials.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
