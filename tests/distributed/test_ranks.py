"""Two CPU ranks under the real launchers find what one process finds."""

import json
import socket
import subprocess

import pytest
import torch

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.distributed.ranks import join_ranks, joined_ranks, uses_gpu
from bigcircuit.errors import UserError
from tests.helpers.launch import ON_CPU, ROOT, launcher_command, option_words
from tests.helpers.short_runs import QUICK, run


def prune_under(launcher: str, ranks: int, **overrides):
    """Run launchers/prune.py to its end; overrides: dotted keys with `__` for the dot."""
    values = {**QUICK, **{key.replace("__", "."): value for key, value in overrides.items()}}
    command = [*launcher_command(launcher, ranks), "launchers/prune.py", *option_words(values)]
    return subprocess.run(command, cwd=ROOT, env=ON_CPU, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(("launcher", "ranks"), [("deepspeed", 2), ("torchrun", 2), ("deepspeed", 1)])
def test_ranks_change_nothing(tmp_path, launcher, ranks):
    # An odd batch: the shares of the ranks differ in size.
    alone = run(tmp_path / "alone", train__batch_size=7)
    done = prune_under(launcher, ranks, output=str(tmp_path / "ranks"), train__batch_size=7)
    assert (tmp_path / "ranks/summary.json").exists(), done.stdout + done.stderr
    assert done.stdout.count("held-out scores") == 1, "only the first rank speaks"
    ours, theirs = (Circuit.load(folder / "circuit.safetensors") for folder in (alone.path, tmp_path / "ranks"))
    for gate, values in ours.log_alpha.items():
        torch.testing.assert_close(values, theirs.log_alpha[gate], atol=1e-3, rtol=0)
    rows = [json.loads(line) for line in (tmp_path / "ranks/metrics.jsonl").read_text().splitlines()]
    expected = [json.loads(line) for line in alone.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows] == [row["step"] for row in expected]
    for row, other in zip(rows, expected, strict=True):
        if "kl" in row:
            assert row["kl"] == pytest.approx(other["kl"], abs=1e-4)


def test_a_mistake_under_a_launcher_is_one_line(tmp_path):
    done = prune_under("deepspeed", 1, output=str(tmp_path / "x"), train__steps="many")
    assert done.returncode != 0
    assert done.stderr.count("bigcircuit: ") + done.stdout.count("bigcircuit: ") == 1
    assert not (tmp_path / "x").exists()


def test_a_taken_master_port_is_one_line_with_the_remedy(monkeypatch):
    """What two runs on one host with deepspeed's own port come to."""
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        names = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in {**names, "GLOO_SOCKET_IFNAME": "lo"}.items():
            monkeypatch.setenv(name, value)
        with (
            pytest.raises(UserError, match=f"^MASTER_PORT {port} is taken on this host, .* --master_port of deepspeed"),
            joined_ranks(),
        ):
            pass


@pytest.mark.parametrize(("asked", "expected"), [("auto", True), ("cuda", True), ("cpu", False)])
def test_gpus_are_used_unless_the_cpu_is_asked_for(monkeypatch, asked, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert uses_gpu(asked) is expected


def test_a_gpu_that_is_asked_for_and_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert join_ranks(0, 1, 0, "cpu").device == join_ranks(0, 1, 0, "auto").device == torch.device("cpu")
    with pytest.raises(UserError, match="model.device is cuda and torch sees no GPU here.*; set it to auto or cpu"):
        join_ranks(0, 1, 0, "cuda")
