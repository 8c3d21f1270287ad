"""launchers/slurm.sh on a stand-in for Slurm: what `srun` and `scontrol` are called with, and what SIGTERM does."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCONTROL = """#!/bin/bash
echo "$@" >> "$LOG/scontrol"
[[ $1 != show ]] || printf 'node1\\nnode2\\n'
"""
SRUN = """#!/bin/bash
printf '%s\\n' "$@" > "$LOG/srun"
trap 'touch "$LOG/terminated"; exit 143' TERM
touch "$LOG/started"
for _ in $(seq "$TENTHS"); do sleep .1; done
exit 7
"""


def submit(folder: Path, tenths: int, **variables: str) -> subprocess.Popen:
    """Start the script as Slurm would, with stand-ins that write to `folder`; `srun` ends after some tenths of a second."""
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_ID": "12345", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8"}
    (folder / "log").mkdir()
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "LOG": str(folder / "log"), "TENTHS": str(tenths)}
    command = ["bash", str(ROOT / "launchers/slurm.sh"), "--config", "my.yaml"]
    return subprocess.Popen(command, env=environment | slurm | variables)


def test_one_task_a_host_starts_the_ranks_and_its_exit_code_is_the_jobs(tmp_path):
    assert submit(tmp_path, 0).wait(20) == 7
    words = (tmp_path / "log/srun").read_text().splitlines()
    assert words[:2] == ["--ntasks=2", "--ntasks-per-node=1"]
    assert words[-2:] == ["--config", "my.yaml"]
    assert (tmp_path / "log/scontrol").read_text() == "show hostnames node[1-2]\n"


@pytest.mark.parametrize("requeue", [False, True])
def test_sigterm_reaches_the_ranks_and_queues_the_job_again_if_asked(tmp_path, requeue):
    job = submit(tmp_path, 200, **({"REQUEUE": "1"} if requeue else {}))
    while not (tmp_path / "log/started").exists():
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(20) == 143
    assert (tmp_path / "log/terminated").exists()
    assert ("requeue 12345" in (tmp_path / "log/scontrol").read_text()) == requeue
