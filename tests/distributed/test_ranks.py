"""Two CPU ranks under the real launchers find what one process finds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bigcircuit.circuit.circuit import Circuit
from tests.helpers.launch import option_words
from tests.helpers.short_runs import QUICK, run

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1"}


def words(**overrides):
    values = {**QUICK, **{key.replace("__", "."): value for key, value in overrides.items()}}
    return option_words(values)


def launch(launcher: list[str], **overrides):
    command = [*launcher, "launchers/prune.py", *words(**overrides)]
    return subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


LAUNCHERS = {
    "deepspeed": [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", "29611"],
    "torchrun": [str(BIN / "torchrun"), "--nproc-per-node", "2", "--master-port", "29612"],
    "deepspeed, one rank": [str(BIN / "deepspeed"), "--num_accelerators", "1", "--master_port", "29613"],
}


@pytest.mark.parametrize("name", LAUNCHERS)
def test_ranks_change_nothing(tmp_path, name):
    # An odd batch: the shares of the ranks differ in size.
    alone = run(tmp_path / "alone", train__batch_size=7)
    done = launch(LAUNCHERS[name], output=str(tmp_path / "ranks"), train__batch_size=7)
    assert (tmp_path / "ranks/summary.json").exists(), done.stdout + done.stderr
    assert done.stdout.count("held-out scores") == 1, "only the first rank speaks"
    ours, theirs = (Circuit.load(folder / "circuit.safetensors") for folder in (alone.path, tmp_path / "ranks"))
    for gate, values in ours.log_alpha.items():
        torch.testing.assert_close(values, theirs.log_alpha[gate], atol=1e-4, rtol=0)
    rows = [json.loads(line) for line in (tmp_path / "ranks/metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in alone.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        if "kl" in row:
            assert row["kl"] == pytest.approx(other["kl"], abs=1e-4)


def test_a_mistake_under_a_launcher_is_one_line(tmp_path):
    done = launch(LAUNCHERS["deepspeed, one rank"], output=str(tmp_path / "x"), train__steps="many")
    assert done.returncode != 0
    assert done.stderr.count("bigcircuit: ") + done.stdout.count("bigcircuit: ") == 1
    assert not (tmp_path / "x").exists()
