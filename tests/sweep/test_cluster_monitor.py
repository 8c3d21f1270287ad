"""A Ray cluster of a sweep's own: out of reach of signals to the sweep's group, and missed within seconds once it is gone."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from tests.helpers.sweep_processes import ROOT, SECONDS

pytest.importorskip("ray", reason="sweeps need ray")

HOLD = """
import os, sys
from pathlib import Path
import ray
from bigcircuit.cli import answer
from bigcircuit.distributed.signals import StopRequest
from bigcircuit.sweep.cluster import cluster
from tests.helpers.sweep_actor import short_sweep

def hold(words):
    request = StopRequest()
    with request.handling_signals(), cluster(None, short_sweep(Path(words[0]))):
        for line in sys.stdin:
            print(request.number, ray.get(ray.remote(lambda: os.nice(0)).remote()), flush=True)
    raise SystemExit(request.number)

raise SystemExit(answer(hold, sys.argv[1:]))
"""
"""Hold a cluster, and tell for each line of stdin the signal that has come and the niceness of a worker."""


@pytest.mark.parametrize("name", ["raylet", "gcs_server"])
def test_ray_outlives_a_signal_to_the_group_and_is_missed_when_gone(tmp_path, name):
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    def ask():
        process.stdin.write("\n")
        process.stdin.flush()
        told = process.stdout.readline().split()
        assert told, process.stderr.read()
        return told

    try:
        assert ask() == ["0", str(os.nice(0))], "workers are as nice as the sweep"
        children = psutil.Process(process.pid).children(recursive=True)
        assert all(os.getsid(child.pid) != process.pid for child in children)
        os.killpg(process.pid, signal.SIGTERM)
        assert ask() == [str(int(signal.SIGTERM)), str(os.nice(0))], "a request, and Ray goes on"
        next(child for child in children if child.name() == name).kill()
        process.wait(SECONDS)
        said = process.stderr.read()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 5
    assert len(said.splitlines()) == 1 and said.startswith("bigcircuit: sweep: "), said
    assert "is gone (" in said and "the same command goes on from the last checkpoints" in said
    _, left = psutil.wait_procs(children, timeout=SECONDS)
    assert not left, "Ray's processes end with the sweep"
