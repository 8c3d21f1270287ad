"""Sweeps with Ray as a person runs them: on this machine, and on a cluster of two nodes, undisturbed and disturbed."""

import os
import signal
from types import SimpleNamespace

import psutil
import pytest
import torch

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import Stopped, UserError
from bigcircuit.prune import prune
from bigcircuit.results.trial_record import read_trial_records
from bigcircuit.runtime.console import PlainConsole
from bigcircuit.sweep.config import load_sweep
from bigcircuit.sweep.resume import replaces_other_sweep
from tests.helpers.sweep_processes import (
    BASE,
    RANK,
    ROOT,
    SECONDS,
    command_line,
    rank_processes,
    records_so_far,
    run_sweep_command,
    some_trial_reached,
    start_sweep,
    statuses_and_circuits,
    trials_csv,
    wait_until,
    write_sweep_config,
)

ray = pytest.importorskip("ray", reason="sweeps need ray")

PBT = {
    "space": {"penalty.mlp_neuron": {"log_uniform": [0.1, 30.0]}, "train.lr": {"log_uniform": [1e-4, 0.3]}},
    "search": "random",
    "trials": 4,
    "scheduler": "pbt",
    "metric": "kl",
    "grace": 1,
    "workers": 1,
    "slots": 3,
}


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """An undisturbed sweep of four trials on two workers."""
    folder = tmp_path_factory.mktemp("grid")
    config = write_sweep_config(folder)
    return config, folder / "s", run_sweep_command(config, folder / "s")


def test_every_trial_is_what_prune_finds_with_its_settings(grid, tmp_path):
    _, output, said = grid
    assert [record.status for record in read_trial_records(output)] == ["finished"] * 4
    assert "report.html" in said and "finished" in said
    for name in ("trials.csv", "trials.parquet", "front.csv", "front.png", "report.html"):
        assert (output / name).stat().st_size, name
    record = read_trial_records(output)[3]
    alone = prune(load(None, {**BASE, **record.settings, "output": str(tmp_path / "alone")}), Ranks())
    found, expected = (
        Circuit.load(path / "circuit.safetensors") for path in (output / f"trials/{record.number:03d}", alone.path)
    )
    for name, values in expected.log_alpha.items():
        torch.testing.assert_close(found.log_alpha[name], values, atol=1e-6, rtol=0)
        assert torch.equal(found.masks[name], expected.masks[name])


def test_a_finished_sweep_is_left_alone_and_another_is_refused(grid):
    config, output, _ = grid
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    assert "holds a finished sweep with these settings; nothing to do" in run_sweep_command(config, output)
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before
    for path in output.rglob("*"):
        assert not path.match(".*") and path.suffix not in (".pkl", ".pickle", ".pt", ".bin"), "what a sweep leaves"
    assert sum(record.updates for record in read_trial_records(output)) == 160
    said = run_sweep_command(config, output, "--train.lr", "0.01", code=2)
    assert len(said.splitlines()) == 1 and "train.lr" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_sweep_goes_on(grid, tmp_path, number):
    config, undisturbed, _ = grid
    process = start_sweep(config, tmp_path / "s")
    wait_until(lambda: some_trial_reached(tmp_path / "s", 20), process)
    if number == signal.SIGTERM:
        os.killpg(process.pid, number)  # as `timeout`, batch systems and service managers do
    else:
        os.kill(process.pid, number)  # Ray's processes have to notice by themselves that their driver is gone
    process.communicate(timeout=60)
    assert process.returncode == (128 + number if number == signal.SIGTERM else -number)
    cut = read_trial_records(tmp_path / "s")
    assert any(record.status == "running" for record in cut)
    if number == signal.SIGTERM:
        assert (tmp_path / "s/report.html").exists()
    run_sweep_command(config, tmp_path / "s")
    assert statuses_and_circuits(tmp_path / "s") == statuses_and_circuits(undisturbed)
    assert trials_csv(tmp_path / "s") == trials_csv(undisturbed)
    # Each made at most what lay between two checkpoints once more, and what a call that was cut off can have made.
    records = read_trial_records(tmp_path / "s")
    assert all(40 <= record.updates <= 40 + 5 + 5 for record in records)
    assert sum(record.updates for record in records) > 160 or number == signal.SIGTERM


def test_trials_of_a_killed_worker_move(grid, tmp_path):
    config, undisturbed, _ = grid
    process = start_sweep(config, tmp_path / "s")
    wait_until(lambda: some_trial_reached(tmp_path / "s", 10), process)
    ranks = rank_processes(process)
    assert len(ranks) == 2
    ranks[0].kill()
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    assert statuses_and_circuits(tmp_path / "s") == statuses_and_circuits(undisturbed)


def test_a_trial_that_fails_is_reported_and_the_others_finish(tmp_path):
    space = {"target.total": [200, 10**6], "task.size": [40, 0]}
    config = write_sweep_config(tmp_path, space=space, slots=4, workers=1)
    said = run_sweep_command(config, tmp_path / "s", "--train.steps", "10")
    records = {tuple(record.settings.values()): record for record in read_trial_records(tmp_path / "s")}
    assert records[200, 40].status == "finished"
    for settings, record in records.items():
        if settings != (200, 40):
            assert record.status == "failed" and "\n" not in record.error
            assert ("target.total" if settings[1] else "task.size") in record.error
    assert "3 failed" in said and "Traceback" not in said


def test_a_sweep_whose_trials_all_failed_says_so_and_gives_way_to_a_corrected_one(tmp_path):
    config = write_sweep_config(tmp_path, space={"train.lr": [-1, -2]}, workers=1)
    said = run_sweep_command(config, tmp_path / "s", "--train.steps", "10", code=2).splitlines()
    assert "trial 1 failed: train.lr: input should be greater than 0, not -2" in said
    assert said[-1].startswith(f"bigcircuit: {tmp_path / 's'}: all 2 trials have failed")
    assert "All 2 trials have failed." in (tmp_path / "s/report.html").read_text()
    said = run_sweep_command(config, tmp_path / "s", "--model.path", "/no/such/model", code=2)
    assert said == "bigcircuit: model.path /no/such/model: no such folder; give a folder with config.json or a hub id\n"
    corrected = load_sweep(config, {"sweep.space": {"train.lr": [0.1]}, "output": str(tmp_path / "s")})
    assert replaces_other_sweep(tmp_path / "s", corrected)
    (tmp_path / "s/sweep.json").write_text("{")
    with pytest.raises(UserError, match="sweep.json: not a sweep's; name another output or use --fresh"):
        replaces_other_sweep(tmp_path / "s", corrected)


def test_one_copy_of_the_model_in_pieces(grid, tmp_path):
    pytest.importorskip("deepspeed", reason="sharding needs deepspeed")
    config, undisturbed, _ = grid
    words = f"--deepspeed {ROOT}/configs/deepspeed/zero3.json --sweep.ranks 2 --sweep.workers 1 --sweep.slots 4"
    run_sweep_command(config, tmp_path / "s", *words.split())
    for record, other in zip(read_trial_records(tmp_path / "s"), read_trial_records(undisturbed), strict=True):
        assert (record.settings, record.status) == (other.settings, "finished")
        found, whole = (
            Circuit.load(path / f"trials/{record.number:03d}/circuit.safetensors")
            for path in (tmp_path / "s", undisturbed)
        )
        # Each rank has half of a batch: products of fewer rows round otherwise, which Adam makes up to 1% of a step (0.1) of.
        for name, values in whole.log_alpha.items():
            torch.testing.assert_close(found.log_alpha[name], values, atol=1e-3, rtol=0)
            assert torch.equal(found.masks[name], whole.masks[name])


@pytest.fixture(scope="module")
def nodes():
    """A Ray cluster of two nodes with one CPU each, in processes of their own on this machine."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.second = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    cluster.shutdown()


def cut_on_the_cluster(nodes, folder, cut, base=None, **search):
    """Run a sweep there, interrupt it when `cut` of its records holds, and go on in this process; its records at the cut and in
    the end.

    What was over then is not made again, and every trial keeps its number, settings and steps.
    """
    from bigcircuit.sweep.run import execute_sweep

    config, output = write_sweep_config(folder, base, **search), folder / "s"
    process = start_sweep(config, output, "--address", nodes.address)
    wait_until(lambda: cut(records_so_far(output)), process)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    before = read_trial_records(output)
    assert any(record.step for record in before)
    execute_sweep(
        load_sweep(config, {"output": str(output)}), nodes.address, PlainConsole(file=(folder / "said").open("w"))
    )
    after = read_trial_records(output)
    assert before != after, "it came too late"
    for old, new in zip(before, after, strict=False):
        assert (old.number, old.drawn) == (new.number, new.drawn)
        assert old == new if old.ended else new.step >= old.step
    return before, after


def groups_left(nodes):
    """Placement groups of the cluster that hold anything."""
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        return [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
    finally:
        ray.shutdown()


def test_asha_stops_trials_early_and_frees_their_slots(nodes, tmp_path):
    before, records = cut_on_the_cluster(
        nodes,
        tmp_path,
        lambda records: any(record.status == "stopped" for record in records),
        space={"penalty.mlp_neuron": [0.5, 1.0, 2.0, 4.0], "train.seed": [0, 1]},
        scheduler="asha",
        metric="kl",
        grace=1,
        workers=1,
        slots=4,
    )
    stopped = [record for record in records if record.status == "stopped"]
    assert len(records) == 8 and {record.status for record in records} == {"finished", "stopped"}
    assert all(record.step in (10, 20) for record in stopped), "a rung, and not an update more"
    past = {record.number: record.decided_step for record in before if not record.ended}
    assert all(record.step > past.get(record.number, 0) for record in stopped), (
        "a trial that the scheduler had continued went on"
    )
    assert all(record.updates == record.step for record in records)
    assert groups_left(nodes) == []


def test_population_based_training_goes_on_from_better_trials(nodes, tmp_path):
    _, records = cut_on_the_cluster(
        nodes,
        tmp_path,
        lambda records: any(record.step >= 20 for record in records),
        {"train.steps": 150},  # after the cut every trial has to report twice before the worst is sure to be replaced
        **PBT,
    )
    assert [record.status for record in records] == ["finished"] * 4
    assert any(record.settings != record.drawn for record in records)
    assert groups_left(nodes) == []


def test_a_signal_is_heeded_while_tune_reads_a_result(nodes, tmp_path, monkeypatch):
    """Tune takes an exception there for the failure of a trial, and continues with the others."""
    from ray.air.execution._internal import event_manager

    from bigcircuit.sweep.run import execute_sweep

    def get(*arguments):
        if some_trial_reached(tmp_path / "s", 10):
            signal.raise_signal(signal.SIGTERM)
        return ray.get(*arguments)

    monkeypatch.setattr(event_manager, "ray", SimpleNamespace(**{**vars(ray), "get": get}))
    sweep = load_sweep(write_sweep_config(tmp_path, **PBT), {"output": str(tmp_path / "s")})
    with pytest.raises(Stopped, match="the same command goes on"):
        execute_sweep(sweep, nodes.address, PlainConsole(file=(tmp_path / "said").open("w")))
    records = read_trial_records(tmp_path / "s")
    assert records and all(record.status in ("running", "waiting") for record in records)
    assert (tmp_path / "s/report.html").exists()
    assert groups_left(nodes) == []


def test_optuna_draws_from_what_trials_have_found(nodes, tmp_path):
    space = {"penalty.mlp_neuron": {"log_uniform": [0.1, 30.0]}}
    _, records = cut_on_the_cluster(
        nodes,
        tmp_path,
        lambda records: any(record.ended for record in records),
        space=space,
        search="optuna",
        trials=6,
        workers=1,
        slots=2,
    )
    assert [record.status for record in records] == ["finished"] * 6
    drawn = [record.settings["penalty.mlp_neuron"] for record in records]
    assert len(set(drawn)) == 6 and all(0.1 <= value <= 30 for value in drawn)


def test_trials_on_two_nodes_and_on_one_when_the_other_is_lost(grid, nodes, tmp_path):
    config, undisturbed, _ = grid
    process = start_sweep(config, tmp_path / "s", "--address", nodes.address)
    wait_until(lambda: some_trial_reached(tmp_path / "s", 10), process)
    raylets = [node.all_processes["raylet"][0].process.pid for node in (nodes.head_node, nodes.second)]
    ranks = [
        [child for child in psutil.Process(pid).children(recursive=True) if command_line(child).startswith(RANK)]
        for pid in raylets
    ]
    assert [len(found) for found in ranks] == [1, 1], "a worker on either node"
    nodes.remove_node(nodes.second, allow_graceful=False)
    said, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, said
    assert statuses_and_circuits(tmp_path / "s") == statuses_and_circuits(undisturbed)
    assert groups_left(nodes) == []
