"""Two hosts, each with a network of its own, find what one process finds."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bigcircuit.circuit.circuit import Circuit
from tests.helpers.launch import ON_CPU, ROOT, option_words
from tests.helpers.network_namespaces import NotPermittedError, two_hosts
from tests.helpers.short_runs import QUICK, run

ENVIRONMENT = {**ON_CPU, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

# Slurm, as far as launchers/slurm.sh sees it: the names of the hosts, and one copy of the command on each.
SCONTROL = "#!/bin/bash\nprintf '%s\\n' {first.address} {second.address}\n"
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
SLURM_NODEID=0 {inside_first} "$@" & one=$!
SLURM_NODEID=1 {inside_second} "$@" & two=$!
wait $one && wait $two
"""


@pytest.fixture
def hosts():
    try:
        with two_hosts() as pair:
            yield pair
    except NotPermittedError as refusal:
        pytest.skip(str(refusal))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    # An odd batch: the shares of the ranks differ in size.
    return Circuit.load(run(tmp_path_factory.mktemp("alone") / "run", train__batch_size=7).path / "circuit.safetensors")


def words(output):
    values = {**QUICK, "train.batch_size": 7, "output": str(output)}
    return ["launchers/prune.py", *option_words(values)]


def check(processes, folder, alone):
    """What counts is the result: a rank may still be aborted by torch on its way out."""
    for process in processes:
        process.wait(timeout=250)
    log = (folder / "log").read_text()
    assert (folder / "run/summary.json").exists(), log
    assert log.count("held-out scores") == 1, "only the first rank speaks"
    circuit = Circuit.load(folder / "run/circuit.safetensors")
    for gate, values in alone.log_alpha.items():
        torch.testing.assert_close(values, circuit.log_alpha[gate], atol=1e-3, rtol=0)


def test_deepspeed_on_each_host_without_ssh(tmp_path, hosts, alone):
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("".join(f"{host.address} slots=1\n" for host in hosts))
    where = f"deepspeed --hostfile {hostfile} --no_ssh --master_addr {hosts[0].address} --master_port 29500".split()
    options = {"cwd": ROOT, "env": ENVIRONMENT, "stderr": subprocess.STDOUT}
    commands = [[*where, "--node_rank", str(node), *words(tmp_path / "run")] for node in range(2)]
    with (tmp_path / "log").open("w") as log:
        processes = [host.start(command, stdout=log, **options) for host, command in zip(hosts, commands, strict=True)]
        check(processes, tmp_path, alone)


def test_torchrun_on_each_host_by_the_slurm_script(tmp_path, hosts, alone):
    first, second = hosts
    programs = {
        "scontrol": SCONTROL.format(first=first, second=second),
        "srun": SRUN.format(inside_first=" ".join(first.inside()), inside_second=" ".join(second.inside())),
    }
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(stat.S_IRWXU)
    job = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2"}
    environment = {**ENVIRONMENT, **job, "PATH": f"{tmp_path}:{ENVIRONMENT['PATH']}"}
    command = ["bash", "launchers/slurm.sh", *words(tmp_path / "run")[1:]]
    with (tmp_path / "log").open("w") as log:
        check([subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)], tmp_path, alone)
