"""The verb: a run or a circuit file becomes a model, with what it costs and whether it is right."""

import json
import os
import re
import signal
import subprocess

import pytest
from safetensors.torch import load_file

import bigcircuit
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.cli import answer, run_export
from bigcircuit.export import export as export_module
from bigcircuit.export.verify import FreshResult
from bigcircuit.io.files import temporary_path
from tests.helpers.short_runs import run

QUIET = ["--speed", "false"]
UNCHECKED = [*QUIET, "--verify", "false"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Short runs of the embedded model under three ablations, and one with two members."""
    folder = tmp_path_factory.mktemp("runs")
    for kind in ("interchange", "zero", "optimal"):
        run(folder / kind, ablation__kind=kind)
    run(folder / "two", ablation__kind="zero", population__seeds=2, train__steps=4)
    return folder


def exported(capsys, *words) -> str:
    code = answer(run_export, [str(word) for word in words])
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return shown.out


def refused(capsys, *words) -> str:
    assert answer(run_export, [str(word) for word in words]) == 2
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    return shown


def test_an_export_is_opened_again_and_timed(runs, tmp_path, capsys):
    out = tmp_path / "small"
    shown = exported(capsys, runs / "zero", "--format", "compact", "--output", out)
    assert re.search(r"opened in a fresh process: logits differ from the masked model by \S+ at most", shown)
    assert re.search(r"prefill [\d,]+ tokens/s, the base [\d,]+ \(\d+\.\d\d x\); decode [\d,]+ tokens/s", shown)
    found = json.loads((out / "export.json").read_text())
    assert found["verification"]["largest_difference"] <= found["verification"]["tolerance"]
    assert found["verification"]["same_tokens"] == found["verification"]["tokens"] == 4 * 64
    assert found["bytes"] == (out / "model.safetensors").stat().st_size < found["base_bytes"]
    model = bigcircuit.load_exported(out)
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters()) < found["base_parameters"]
    assert set(found["speed"]) == {"exported", "base"} and found["scores"] == [] and found["not_done"] == ""
    assert found["kept"]["total"] == Circuit.load(runs / "zero/circuit.safetensors").sizes()["total"]
    assert {path.name for path in out.iterdir()} >= {"config.json", "tokenizer.json", "generation_config.json"}
    assert not [path for path in tmp_path.iterdir() if path != out], "nothing else is left"


def test_an_interchange_circuit_is_frozen_under_another_ablation_and_scored_again(runs, tmp_path, capsys):
    message = refused(capsys, runs / "interchange", "--format", "uniform", "--output", tmp_path / "x")
    assert (
        "under interchange ablation what closed nodes output depends on another prompt, which weights cannot" in message
    )
    assert "choose --ablation zero or mean or optimal" in message
    words = ["--format", "compact", "--ablation", "mean", "--output", tmp_path / "x", *QUIET]
    shown = exported(capsys, runs / "interchange", *words)
    found = json.loads((tmp_path / "x/export.json").read_text())
    first, second = found["scores"]
    assert (first["what"], second["what"]) == ("interchange ablation", "mean ablation")
    summary = json.loads((runs / "interchange/summary.json").read_text())
    [member] = summary["members"]
    assert first["kl"]["mean"] == pytest.approx(member["scores"]["kl"]["mean"], rel=1e-4)
    assert first["kl"]["mean"] != second["kl"]["mean"]
    assert f"held-out pairs, mean ablation: KL {second['kl']['mean']:.4f}" in shown
    assert any(
        name.endswith("o_proj.bias") or name.endswith("self_attn.bias")
        for name in load_file(tmp_path / "x/model.safetensors")
    )


def test_learned_constants_of_the_file_are_taken_as_they_are(runs, tmp_path, capsys):
    exported(capsys, runs / "optimal", "--format", "compact", "--output", tmp_path / "x", *UNCHECKED)
    found = json.loads((tmp_path / "x/export.json").read_text())
    assert found["ablation"] == "optimal" and found["scores"] == []


def test_limits_close_the_weakest_and_say_what_it_costs(runs, tmp_path, capsys):
    words = ["--format", "uniform", "--mlp_neurons", 8, "--heads_per_group", 1, "--output", tmp_path / "x", *UNCHECKED]
    exported(capsys, runs / "zero", *words)
    found = json.loads((tmp_path / "x/export.json").read_text())
    assert [row["what"] for row in found["scores"]] == ["zero ablation", "zero ablation, within the limits"]
    assert found["scores"][0]["kl"]["mean"] < found["scores"][1]["kl"]["mean"]
    assert found["verification"] is None and found["not_done"] == "not opened again, as asked for"
    config = json.loads((tmp_path / "x/config.json").read_text())
    assert config["intermediate_size"] <= 8
    masks = Circuit.load(runs / "zero/circuit.safetensors")
    bare = tmp_path / "bare.safetensors"
    Circuit(masks.masks, {}, {"ablation": "zero", "widths": masks.metadata["widths"]}).save(bare)
    message = refused(
        capsys, bare, "--config", runs / "zero", "--format", "uniform", "--mlp_neurons", 8, "--output", tmp_path / "y"
    )
    assert "holds no log_alpha, so there are no scores by which --mlp_neurons could choose" in message


def test_mistakes_are_one_line_and_leave_nothing(runs, tmp_path, capsys):
    zero, out = runs / "zero", tmp_path / "out"
    for words, message in (
        ((zero, "--output", out), "export needs --format, one of compact, gguf, ia3, uniform, zeroed"),
        ((zero, "--format", "onnx", "--output", out), "--format onnx: not a format; known: compact"),
        ((zero, "--format", "compact"), "export needs --output"),
        (("--format", "compact", "--output", out), "export needs one run folder or circuit file"),
        ((runs / "two", "--format", "compact", "--output", out), "holds 2 circuits; name one of them, such as"),
        ((zero, "--format", "compact", "--output", tmp_path), "exists already; move it"),
        ((zero, "--format", "ia3", "--ablation", "mean", "--output", out), "(IA)3 can only scale; use --ablation zero"),
        ((zero, "--format", "compact", "--ablation", "noise", "--output", out), "depends on random numbers"),
        ((zero, "--format", "compact", "--mlp_neurons", 0, "--output", out), "--mlp_neurons"),
    ):
        assert message in refused(capsys, *words)
        assert not out.exists()
    assert not list(tmp_path.iterdir())


def test_sigterm_leaves_nothing_and_a_crash_leaves_what_the_next_export_removes(runs, tmp_path, capsys, monkeypatch):
    output = tmp_path / "out"

    def stop(*_):
        assert len(list(tmp_path.iterdir())) == 1
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(export_module, "_verified", stop)
        with pytest.raises(SystemExit) as ended:
            run_export([str(runs / "zero"), "--format", "zeroed", "--output", str(output), *UNCHECKED])
    assert ended.value.code == 128 + signal.SIGTERM and not list(tmp_path.iterdir())
    ended_process = subprocess.Popen(["true"])
    ended_process.wait()
    temporary_path(output, ended_process.pid).mkdir()
    exported(capsys, runs / "zero", "--format", "zeroed", "--output", output, *UNCHECKED)
    assert list(tmp_path.iterdir()) == [output]


def test_an_export_that_differs_is_not_kept(runs, tmp_path, capsys, monkeypatch):
    real = export_module.run_fresh

    def damaged(asked):
        [result] = real(asked)
        return [FreshResult({**result.outputs, "logits": result.outputs["logits"] + 0.01}, result.speed)]

    monkeypatch.setattr(export_module, "run_fresh", damaged)
    message = refused(capsys, runs / "zero", "--format", "zeroed", "--output", tmp_path / "x", *QUIET)
    assert "differs from the masked model by 0.01 in a logit" in message and "was not kept" in message
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_told_as_not_done(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export_module, "_SHARE_OF_FREE", 0.0)
    shown = exported(capsys, runs / "zero", "--format", "uniform", "--output", tmp_path / "x")
    assert "not compared with the masked model: that needs 0.0 GiB in float32 and not timed" in shown
    found = json.loads((tmp_path / "x/export.json").read_text())
    assert found["verification"] is None and found["speed"] == {} and found["not_done"]
