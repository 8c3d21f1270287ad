"""Small models of real proportions: every DeepSpeed config that comes with the package gives the gates of one process without."""

import json
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.large_models import SHAPES, sibling, write_folder
from tests.helpers.launch import DEEPSPEED_CONFIGS, ENVIRONMENT, ROOT, launcher_command

DENSE = [name for name, shape in SHAPES.items() if not shape.experts]
STAGES = ["zero0", "zero1", "zero2", "zero3", "zero3_offload_cpu", "zero3_offload_nvme"]
ALONE = {
    "plain": {},
    "stream": {"model.weights": "stream"},
    "stream, checkpointing": {"model.weights": "stream", "train.checkpointing": True},
}
"""Name of a run without DeepSpeed -> its settings."""
LAUNCHERS = {1: "none", 2: "torchrun"}
"""Ranks -> what starts them."""
RUN = {
    "model.dtype": "bfloat16",
    "task.name": "ioi",
    "task.size": 12,
    "train.steps": 2,
    "train.batch_size": 4,
    "train.micro_batch_size": 2,
    "train.validate_every": 2,
    "train.save_every": 1,
    "target.total": 100,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Ranks -> the folder of their runs, named by model and stage, and what they printed; "plain" has no DeepSpeed config.

    The runs of a number of ranks share a start of them. Both starts are at work at once, because one rank leaves a core idle.
    """
    folder = tmp_path_factory.mktemp("siblings")
    for name in DENSE:
        list(write_folder(folder / name, sibling(name)))
    working = {}
    for ranks, launcher in LAUNCHERS.items():
        series = [
            {**RUN, "model.path": str(folder / name), "output": str(folder / str(ranks) / f"{name}-{stage}")}
            | ALONE.get(stage, {"deepspeed": str(DEEPSPEED_CONFIGS / f"{stage}.json")})
            for stage in [*(ALONE if ranks == 1 else ["plain"]), *STAGES]
            for name in DENSE
        ]
        (folder / f"{ranks}.json").write_text(json.dumps(series))
        command = [*launcher_command(launcher, ranks), "-m", "tests.helpers.run_series", str(folder / f"{ranks}.json")]
        environment = {**ENVIRONMENT, "PYTHONPATH": str(ROOT)}
        with (folder / f"{ranks}.log").open("w") as log:
            working[ranks] = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    for process in working.values():
        process.wait(300)
    return {ranks: (folder / str(ranks), (folder / f"{ranks}.log").read_text()) for ranks in LAUNCHERS}


def gates(runs, ranks, name, stage, step=2):
    folder, printed = runs[ranks]
    path = folder / f"{name}-{stage}/checkpoints/step-{step:06d}/state.safetensors"
    errors = [line for line in printed.splitlines() if "UserError: " in line]
    assert path.exists(), "\n".join(errors) or printed[-4000:]
    return {gate: values for gate, values in load_file(path).items() if ".log_alpha." in gate}


@pytest.mark.parametrize("ranks", LAUNCHERS)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", DENSE)
def test_no_config_changes_the_gates(runs, name, stage, ranks):
    expected, found = gates(runs, 1, name, "plain"), gates(runs, ranks, name, stage)
    assert found.keys() == expected.keys()
    for gate, values in expected.items():
        assert torch.equal(values, found[gate]), gate


@pytest.mark.parametrize("stage", [name for name in ALONE if name != "plain"])
@pytest.mark.parametrize("name", DENSE)
def test_streaming_does_not_change_the_gates(runs, name, stage):
    expected, found = gates(runs, 1, name, "plain"), gates(runs, 1, name, stage)
    assert all(torch.equal(values, found[gate]) for gate, values in expected.items())


@pytest.mark.parametrize("name", DENSE)
def test_the_second_update_moved_the_gates_too(runs, name):
    first, second = (gates(runs, 1, name, "plain", step) for step in (1, 2))
    assert all((values != first[gate]).float().mean() > 0.9 for gate, values in second.items())
