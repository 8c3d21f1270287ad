"""How many workers a cluster holds, and what is said where it cannot be joined."""

import socket

import pytest

from bigcircuit.errors import UserError
from bigcircuit.sweep.config import SweepSettings

pytest.importorskip("ray", reason="sweeps need ray")

from bigcircuit.sweep import cluster as cluster_module
from bigcircuit.sweep.cluster import WorkerResources, cluster, core_count, worker_resources
from tests.helpers.sweep_actor import short_sweep
from tests.helpers.sweep_processes import run_sweep_command, write_sweep_config


@pytest.fixture
def holds(monkeypatch):
    """Say what the cluster holds."""

    def say(nodes=1, **resources):
        monkeypatch.setattr(
            cluster_module.ray, "cluster_resources", lambda: {k: float(v) for k, v in resources.items()}
        )
        monkeypatch.setattr(cluster_module.ray, "nodes", lambda: [{}] * nodes)

    return say


@pytest.fixture(autouse=True)
def no_asked_threads(monkeypatch):
    """Machines that run the tests set it."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)


def asked(**settings):
    return SweepSettings(space={"train.seed": [0]}, **settings)


@pytest.mark.parametrize(
    ("cluster_holds", "settings", "trials", "expected"),
    [
        ({"CPU": 8}, {"slots": 4}, 16, (4, 2, 0.0)),
        ({"CPU": 8}, {"slots": 4}, 6, (2, 4, 0.0)),
        ({"CPU": 8, "nodes": 2}, {"slots": 4}, 6, (2, 1, 0.0)),
        ({"CPU": 8}, {"slots": 1, "cpus": 3}, 16, (2, 3, 0.0)),
        ({"CPU": 8, "GPU": 3}, {"slots": 1}, 16, (3, 1, 1.0)),
        ({"CPU": 8, "GPU": 3}, {"slots": 1, "ranks": 2}, 16, (1, 1, 1.0)),
        ({"CPU": 8, "GPU": 3}, {"slots": 1, "gpus": 0.5}, 16, (6, 1, 0.5)),
        ({"CPU": 8, "GPU": 3}, {"slots": 8, "gpus": 0}, 16, (2, 4, 0.0)),
        ({"CPU": 8}, {"workers": 3, "slots": 8}, 1, (3, 2, 0.0)),
    ],
)
def test_as_many_workers_as_trials_need_and_machines_hold(holds, cluster_holds, settings, trials, expected):
    holds(**cluster_holds)
    assert worker_resources(asked(**settings), trials, can_grow=False) == WorkerResources(*expected)


@pytest.mark.parametrize(
    ("variable", "settings", "cpus"),
    [
        ("1", {}, 1),
        ("3", {}, 3),
        ("3,2", {}, 3),
        ("64", {}, 8),
        ("0", {}, 8),
        ("many", {}, 8),
        ("1", {"cpus": 2}, 2),
        ("3", {"workers": 4}, 2),
    ],
)
def test_threads_that_the_environment_asks_for_hold_unless_settings_say_otherwise(
    holds, monkeypatch, variable, settings, cpus
):
    holds(CPU=8)
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert worker_resources(asked(slots=8, **settings), 8, can_grow=False).cpus == cpus


def test_the_device_that_is_asked_for_decides_whether_workers_take_gpus(holds):
    holds(CPU=8, GPU=3)
    assert worker_resources(asked(slots=8), 16, False, "cpu") == WorkerResources(2, 4, 0.0, "cpu")
    assert worker_resources(asked(slots=8), 16, False, "cuda") == WorkerResources(2, 1, 1.0, "cuda")
    holds(CPU=8)
    with pytest.raises(UserError, match="need 1 CPUs and 1 GPUs, there are 8 and 0"):
        worker_resources(asked(slots=8), 16, False, "cuda")


def test_too_few_resources_are_an_error_unless_machines_may_come(holds):
    holds(CPU=2)
    with pytest.raises(UserError, match="3 worker\\(s\\) of 1 rank\\(s\\) need 3 CPUs and 0 GPUs, there are 2 and 0"):
        worker_resources(asked(workers=3), 16, can_grow=False)
    assert worker_resources(asked(workers=3), 16, can_grow=True).workers == 3
    with pytest.raises(UserError, match="1 worker\\(s\\) of 4 rank\\(s\\) need 4 CPUs"):
        worker_resources(asked(ranks=4), 16, can_grow=True)


def test_an_address_without_a_cluster_is_answered_at_once(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(UserError, match=f"--address ray://127.0.0.1:{port}: nobody answers there"):
        cluster(f"ray://127.0.0.1:{port}", short_sweep(tmp_path)).__enter__()


def test_a_machine_too_busy_for_ray_is_one_line(tmp_path, monkeypatch):
    def init(*_, **__):
        raise Exception(
            "The current node timed out during startup.\nThis could happen"
        )  # what Ray 2.60 raises after 30 s

    monkeypatch.setattr(cluster_module.ray, "init", init)
    with pytest.raises(
        UserError, match=r"^Ray cannot start on this machine \(The current node timed out .*: try again later"
    ):
        cluster(None, short_sweep(tmp_path)).__enter__()


def test_a_folder_too_long_for_sockets_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("long" * 30)))
    with pytest.raises(UserError, match="Ray cannot start on this machine .*107 bytes.* set RAY_TMPDIR, as to /tmp"):
        cluster(None, short_sweep(tmp_path)).__enter__()


def test_this_machine_has_the_cores_that_are_asked_for(tmp_path):
    own = core_count(short_sweep(tmp_path))
    assert own >= 1
    assert core_count(short_sweep(tmp_path, workers=own, ranks=2, cpus=3)) == own * 6


def test_a_sweep_that_cannot_start_is_one_line(tmp_path):
    config = write_sweep_config(tmp_path)
    said = run_sweep_command(config, tmp_path / "s", "--sweep.gpus", "1000", code=2)
    assert "need 2 CPUs and 2000 GPUs" in said and len(said.splitlines()) == 1
    said = run_sweep_command(config, tmp_path / "s", "--address", "127.0.0.1:1", code=2)
    assert "--address 127.0.0.1:1: nobody answers there" in said and len(said.splitlines()) == 1
    assert not (tmp_path / "s/sweep.json").exists()
