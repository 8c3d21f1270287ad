"""What launchers announce, what they leave out, and which interface gloo is told."""

import re
import socket

import psutil
import pytest

from bigcircuit.distributed.launcher_env import crowding, read_launcher_env, set_gloo_interface
from bigcircuit.errors import UserError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION", "LOCAL_WORLD_SIZE",
         "LOCAL_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS", "GLOO_SOCKET_IFNAME")  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    return lambda **values: [monkeypatch.setenv(name, value) for name, value in values.items()]


def test_one_process_without_a_launcher(environment):
    environment()
    assert read_launcher_env() == (0, 1, 0)


def test_a_launcher_that_says_it_all(environment):
    environment(RANK="5", WORLD_SIZE="8", LOCAL_RANK="1", MASTER_ADDR="h", ACCELERATE_MIXED_PRECISION="no")
    assert read_launcher_env() == (5, 8, 1)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set and the other"),
        ({"RANK": "0"}, "RANK is set and the other"),
        ({"MASTER_ADDR": "127.0.0.1", "ACCELERATE_MIXED_PRECISION": "no"}, "accelerate launch --cpu .* --multi_gpu"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "one of 2 processes without a RANK"),
        ({"SLURM_STEP_NUM_TASKS": "4"}, "one of 4 processes without a RANK"),
    ],
)
def test_ranks_that_cannot_know_who_they_are_are_refused(environment, values, message):
    environment(**values)
    with pytest.raises(UserError, match=message):
        read_launcher_env()


def test_one_slurm_task_is_one_process(environment):
    environment(SLURM_STEP_NUM_TASKS="1", OMPI_COMM_WORLD_SIZE="1")
    assert read_launcher_env().world_size == 1


def test_gloo_gets_the_interface_on_the_way_to_the_first_host(environment, monkeypatch):
    environment(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500")
    set_gloo_interface(2)
    import os

    loopback = next(name for name, all_ in psutil.net_if_addrs().items()
                    if any(a.family == socket.AF_INET and a.address == "127.0.0.1" for a in all_))  # fmt: skip
    assert os.environ["GLOO_SOCKET_IFNAME"] == loopback
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "chosen")
    set_gloo_interface(2)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "chosen", "what the user says holds"


def test_a_loopback_address_cannot_lead_to_another_host(environment):
    environment(MASTER_ADDR="127.0.0.1", MASTER_PORT="29500", LOCAL_WORLD_SIZE="2")
    with pytest.raises(UserError, match="loopback address .* which no other host can reach"):
        set_gloo_interface(4)


@pytest.mark.parametrize(
    ("ranks", "threads", "cores", "warning"),
    [
        (2, 1, 2, None),
        (2, 4, 8, None),
        (8, 1, 2, r"warning: 8 ranks share 2 CPU core\(s\) .*; start 2 or fewer \(--num_accelerators of deepspeed"),
        (2, 4, 4, r"warning: 2 ranks with 4 threads each share 4 CPU core\(s\) .*; set OMP_NUM_THREADS to 2$"),
    ],
)
def test_more_threads_than_cores_are_warned_of(ranks, threads, cores, warning):
    said = crowding(ranks, threads, cores)
    assert said is None if warning is None else re.match(warning, said), said
