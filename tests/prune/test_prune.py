"""Whole runs on the embedded model: outputs, determinism, resuming, refusing, stopping."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from bigcircuit import prune
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.cli import answer, run_prune
from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import DivergedError, UserError
from bigcircuit.io import checkpoint
from bigcircuit.io.files import tensor_sha256
from bigcircuit.model.granularity import NODE_NAMES
from bigcircuit.train import step as train_step
from tests.helpers.interrupted_runs import run_or_resume
from tests.helpers.short_runs import run


def test_run_folder_is_complete(finished_run):
    assert {path.name for path in finished_run.path.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "circuit.safetensors",
        "summary.json",
        "examples.json",
        "report.html",
        "checkpoints",
    }
    assert [path.name for path in sorted(finished_run.checkpoints.iterdir())] == ["step-000006", "step-000012"]
    assert not list(finished_run.path.rglob("*.tmp"))


def test_summary_counts_what_the_file_holds(finished_run):
    summary = json.loads(finished_run.summary.read_text())
    (member,) = summary["members"]
    circuit = Circuit.load(finished_run.path / member["circuit"])
    assert member["kept"] == circuit.sizes()
    assert member["kept"]["total"] == 200
    assert summary["nodes"]["total"] == 1792
    assert 0 < member["parameters_kept"] < 0.5
    assert summary["full"]["kl"]["mean"] == 0
    assert summary["full"]["accuracy"]["mean"] > 0.99
    assert summary["empty"]["accuracy"]["mean"] < 0.01
    for scores in (member["scores"], summary["full"], summary["empty"]):
        assert set(scores) == {
            "kl",
            "cross_entropy",
            "logit_difference",
            "recovered",
            "probability_difference",
            "accuracy",
            "exact_match",
        }
        assert all(s["low"] <= s["mean"] + 1e-6 and s["mean"] <= s["high"] + 1e-6 for s in scores.values())
    assert summary["seconds"] > 0
    assert summary["peak_memory_bytes"] > 1e7


def test_circuit_file_opens_without_this_project(finished_run):
    with safe_open(str(finished_run.path / "circuit.safetensors"), framework="pt") as file:
        metadata = file.metadata()
        names = set(file.keys())
        masks = {name: file.get_tensor(name) for name in names}
    assert metadata["format"] == "bigcircuit/1"
    assert masks["mask.head"].dtype == torch.bool
    assert masks["mask.head"].shape == (4, 8)
    assert masks["log_alpha.mlp_neuron"].dtype == torch.float32
    hashes = json.loads(metadata["sha256"])
    assert {name: tensor_sha256(mask) for name, mask in masks.items()} == hashes
    for key in (
        "model",
        "model_config_sha256",
        "model_weights_sha256",
        "tokenizer_files_sha256",
        "task",
        "task_sha256",
        "task_tokens_sha256",
        "held_out_sha256",
        "threads",
        "seed",
    ):
        assert metadata[key], key
    assert json.loads(metadata["scores"])["interchange"]["kl"]["mean"] > 0


def test_metrics_have_a_line_a_logged_step(finished_run):
    rows = [json.loads(line) for line in finished_run.metrics.read_text().splitlines()]
    assert [row["step"] for row in rows if "kl" in row] == [4, 8, 12]
    assert [row["step"] for row in rows if "validation.kl" in row] == [6, 12]
    assert all(row["validation.kept.total"] == 200 for row in rows if "validation.kl" in row)


def test_same_seed_gives_the_same_bytes_and_another_seed_others(finished_run, tmp_path):
    first = (finished_run.path / "circuit.safetensors").read_bytes()
    again = run(tmp_path / "b")
    other = run(tmp_path / "c", train__seed=1)
    assert (again.path / "circuit.safetensors").read_bytes() == first
    assert (other.path / "circuit.safetensors").read_bytes() != first


def test_finished_run_is_left_alone(finished_run, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished_run.path.rglob("*")}
    run(finished_run.path)
    assert "finished" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in finished_run.path.rglob("*")} == before


def test_not_a_number_stops_before_the_update(tmp_path, monkeypatch):
    def poisoned(frozen, batch, found, reference):
        return real(frozen, batch, found * float("nan") if poison["on"] else found, reference)

    real, poison = train_step.comparison_of, {"on": False}
    monkeypatch.setattr(train_step, "comparison_of", poisoned)
    calls = []

    def counting(state, *arguments):
        poison["on"] = state.step == 7
        calls.append({name: v.detach().clone() for name, v in state.population.named_parameters()})
        try:
            return train_step.update(state, *arguments)
        except DivergedError:
            now = dict(state.population.named_parameters())
            assert all(torch.equal(now[name], value) for name, value in calls[-1].items())
            raise

    monkeypatch.setattr(prune, "update", counting)
    with pytest.raises(DivergedError, match="member 0, step 8: .*not finite.*lower train.lr"):
        run(tmp_path / "nan")
    assert len(calls) == 8
    assert checkpoint.load_newest(tmp_path / "nan/checkpoints", pytest.fail).data["step"] == 6


def test_population_writes_one_file_a_member(tmp_path):
    folder = run(tmp_path / "p", population__members=[{"train.seed": 0}, {"train.seed": 5, "target.total": 99}])
    summary = json.loads(folder.summary.read_text())
    assert [row["kept"]["total"] for row in summary["members"]] == [200, 99]
    assert [row["circuit"] for row in summary["members"]] == ["circuits/0.safetensors", "circuits/1.safetensors"]
    alone = run(tmp_path / "alone")
    ours, theirs = (
        Circuit.load(folder.path / "circuits/0.safetensors"),
        Circuit.load(alone.path / "circuit.safetensors"),
    )
    for name, values in ours.log_alpha.items():
        torch.testing.assert_close(values, theirs.log_alpha[name], atol=1e-5, rtol=0)


def test_a_run_that_resumes_with_other_threads_says_so(stopped_run, tmp_path, capsys):
    shutil.copytree(stopped_run.folder / "run", tmp_path / "run")
    torch.set_num_threads(2)
    try:
        run_or_resume(tmp_path / "run", Ranks(), **stopped_run.overrides)
    finally:
        torch.set_num_threads(1)
    assert "note: torch uses 2 threads and used 1 before, so numbers may differ" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/summary.json").read_text())["threads"] == 2


def test_a_run_folder_repeats_itself(finished_run, tmp_path, capsys):
    assert answer(run_prune, ["--config", str(finished_run.path)]) == 0
    assert "holds a finished run with these settings; nothing to do" in capsys.readouterr().out
    assert answer(run_prune, ["--config", str(finished_run.config), "--output", str(tmp_path / "again")]) == 0
    first, again = (path / "circuit.safetensors" for path in (finished_run.path, tmp_path / "again"))
    assert first.read_bytes() == again.read_bytes()


def test_a_share_is_the_size_that_it_stands_for(tmp_path):
    share, number = (
        run(tmp_path / str(size), target__total=size, target__head=head) for size, head in (("10%", 0.25), (179, 8))
    )
    for folder, asked in ((share, {"total": 0.1, "head": 0.25}), (number, {"total": 179, "head": 8})):
        config = json.loads(folder.config.read_text())["config"]
        assert {name: config["target"][name] for name in NODE_NAMES if config["target"].get(name)} == asked
        (member,) = json.loads(folder.summary.read_text())["members"]
        assert member["targets"] == {"total": 179, "head": 8} and member["kept"]["total"] == 179
    first, second = (folder.path / "circuit.safetensors" for folder in (share, number))
    assert first.read_bytes() == second.read_bytes()


def test_a_run_that_asks_for_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nothing asks for a small circuit: .*; set target\.total 0\.1 for a tenth"):
        run(tmp_path / "run", target__total=None)
    assert not (tmp_path / "run").exists()


def test_unsolved_pairs_are_counted(tmp_path, capsys):
    folder = run(tmp_path / "k", task__keep="solved", task__name="induction", train__steps=2)
    left_out = json.loads(folder.summary.read_text())["left_out"]["unsolved"]
    text = capsys.readouterr().out
    assert f"{left_out} of 80 pairs left out" in text
    solved = re.search(
        r"\nthe full model prefers the right answer on (\d+) of (\d+) pairs \(mean logit difference ", text
    )
    assert solved is not None and solved[1] == solved[2]
    assert text.index(solved[0]) < text.index("pruning: ")


@pytest.mark.parametrize(
    "overrides",
    [
        {"ablation__kind": "zero"},
        {"gates__warm_start": "integrated_gradients"},
        {"gates__parametrisation": "straight_through", "train__hinge": 1.0},
        {
            "gates__granularities": [
                "block",
                "attention",
                "mlp",
                "kv_group",
                "head",
                "attention_neuron",
                "mlp_neuron",
                "mlp_output",
            ]
        },  # fmt: skip
        {"gates__granularities": ["head", "mlp"]},
        {"train__checkpointing": True, "task__padding": "left"},
    ],
    ids=str,
)
def test_settings_run_to_the_end(tmp_path, overrides):
    folder = run(tmp_path / "s", **overrides, train__steps=4)
    (member,) = json.loads(folder.summary.read_text())["members"]
    width = 320 if overrides.get("gates__granularities") == ["head", "mlp"] else 1
    assert abs(member["kept"]["total"] - 200) < width


def test_paper_preset_runs(tmp_path):
    preset = load(Path(__file__).parents[2] / "configs/presets/paper.yaml").model_dump()
    values = {
        f"{section}.{key}": value for section in ("gates", "penalty", "train") for key, value in preset[section].items()
    }
    quick = {"train.steps": 4, "train.validate_every": 2, "task.size": 60, "output": str(tmp_path / "paper")}
    folder = prune.prune(load(None, {**values, **quick}), Ranks())
    (member,) = json.loads(folder.summary.read_text())["members"]
    assert member["penalties"]["mlp_output"] == 0.95
    assert member["kept"]["mlp_output"] > 0


def test_bad_pairs_can_be_dropped_and_are_counted(tmp_path, capsys):
    rows = [
        {
            "clean": f"So {a} likes {thing}",
            "corrupted": f"So {b} likes {thing}",
            "answers": " she",
            "wrong_answers": " he",
        }
        for a, b in (("Mary", "John"), ("Anna", "James"), ("Emma", "Tom"))
        for thing in ("a book", "a cake", "a ball")
    ]
    rows[4]["corrupted"] += " and more"
    rows.append(rows[0])
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"task__name": "pairs", "task__path": str(path), "train__steps": 2}
    with pytest.raises(UserError, match=r"pairs\.jsonl:5: clean has \d+ tokens"):
        run(tmp_path / "stop", **settings)
    folder = run(tmp_path / "drop", **settings, task__bad_pairs="drop")
    summary = json.loads(folder.summary.read_text())
    pairs = summary["pairs"]
    assert summary["left_out"] == {"bad": 2, "unsolved": 0}
    assert pairs["train"] + pairs["validation"] + pairs["test"] == 8
    assert "2 of 10 pairs left out; the first: " in capsys.readouterr().out
