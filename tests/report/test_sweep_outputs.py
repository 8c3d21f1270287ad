"""What is made of a sweep's folder: tables, front, circuits, and the config of the best trial."""

import csv
import json
import shutil

import pyarrow as pa
import pytest
import torch
import yaml
from pyarrow import parquet

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.cli import answer, run_prune, run_report, run_sweep
from bigcircuit.config.load import load
from bigcircuit.report.sweep_outputs import write_sweep_outputs
from bigcircuit.results.pareto import dominates
from tests.helpers.sweep_dir import OTHERS, TRIALS, trial_folder, write_trial

DONE = range(len(TRIALS))
EMPTY = '{"members": [], "nodes": {}, "full": {}, "empty": {}}'


def copied(swept, tmp_path):
    shutil.copytree(swept, tmp_path / "s")
    return tmp_path / "s"


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def row_of(swept, number):
    return json.loads(trial_folder(swept, number).summary.read_text())["members"][0]


def on_front(swept):
    points = {n: (row_of(swept, n)["kept"]["total"], row_of(swept, n)["scores"]["kl"]["mean"]) for n in DONE}
    return sorted((n for n in DONE if not any(dominates(points[m], points[n]) for m in DONE)), key=points.get)


def test_the_tables_say_what_the_trials_found(swept):
    rows = read_csv(swept / "trials.csv")
    assert [int(row["number"]) for row in rows] == list(range(len(TRIALS) + len(OTHERS)))
    assert [row["status"] for row in rows] == ["finished"] * len(TRIALS) + [one["status"] for one in OTHERS]
    for number, settings in enumerate(TRIALS):
        row, found = rows[number], row_of(swept, number)
        assert {key: float(row[key]) for key in settings} == settings
        for name in ("logit_difference", "recovered", "accuracy", "exact_match"):
            assert float(row[name]) == found["scores"][name]["mean"]
        kl = found["scores"]["kl"]
        assert [float(row[key]) for key in ("kl", "kl.low", "kl.high")] == [kl["mean"], kl["low"], kl["high"]]
        assert {name: int(row[f"kept.{name}"]) for name in found["kept"]} == found["kept"]
        assert float(row["parameters_kept"]) == found["parameters_kept"]
        assert Circuit.load(swept / row["circuit"]).sizes() == found["kept"]
    assert [rows[5][key] for key in ("kl", "circuit", "on_front", "validation.kl", "step")] == [
        "",
        "",
        "false",
        "0.5",
        "2",
    ]
    assert (rows[6]["error"], rows[7]["step"]) == ("ask for fewer", "0")


def test_parquet_is_the_same_with_numbers_as_numbers(swept):
    table = parquet.read_table(swept / "trials.parquet")
    kinds = {field.name: field.type for field in table.schema}
    assert (kinds["number"], kinds["kept.total"], kinds["step"]) == (pa.int64(),) * 3
    assert (kinds["kl"], kinds["train.lr"], kinds["seconds"]) == (pa.float64(),) * 3
    assert (kinds["on_front"], kinds["status"], kinds["error"]) == (pa.bool_(), pa.string(), pa.string())
    rows = read_csv(swept / "trials.csv")
    assert table.column_names == list(rows[0])
    for mine, theirs in zip(table.to_pylist(), rows, strict=True):
        shown = {key: "" if v is None else str(v).lower() if isinstance(v, bool) else str(v) for key, v in mine.items()}
        assert shown == theirs


def test_the_front_has_its_table_figures_and_circuits(swept):
    expected = on_front(swept)
    rows = read_csv(swept / "front.csv")
    assert [int(row["number"]) for row in rows] == expected and 2 <= len(expected) < len(TRIALS)
    for number, row in zip(expected, rows, strict=True):
        assert row["circuit"] == f"circuits/{number:03d}.safetensors"
        own = trial_folder(swept, number).path / "circuit.safetensors"
        assert (swept / row["circuit"]).read_bytes() == own.read_bytes()
    assert len(list((swept / "circuits").iterdir())) == len(expected)
    assert (swept / "front.png").read_bytes().startswith(b"\x89PNG")
    svg = (swept / "front.svg").read_text()
    assert ">held-out KL, nats</text>" in svg and ">site neurons kept</text>" in svg


def test_again_gives_the_same_files_and_a_circuit_that_is_beaten_goes(swept, tmp_path):
    folder = copied(swept, tmp_path)
    before = {path: path.read_bytes() for path in folder.glob("*.*") if path.name != "report.html"}
    write_sweep_outputs(folder)
    assert all(path.read_bytes() == content for path, content in before.items())
    (folder / "circuits/mine.safetensors").write_bytes(b"not of the sweep")
    smallest = trial_folder(folder, on_front(folder)[0])
    summary = json.loads(smallest.summary.read_text())
    summary["members"][0]["scores"]["kl"]["mean"] = 99.0
    summary["members"][0]["kept"]["total"] = 1792
    smallest.summary.write_text(json.dumps(summary))
    write_sweep_outputs(folder)
    names = {path.name for path in (folder / "circuits").iterdir()}
    assert names == {"mine.safetensors", *(f"{number:03d}.safetensors" for number in on_front(folder))}
    assert f"{smallest.path.name}.safetensors" not in names


def test_a_sweep_of_which_nothing_has_finished(swept, tmp_path):
    shutil.copy(swept / "sweep.json", tmp_path)
    write_sweep_outputs(tmp_path)
    assert (tmp_path / "trials.csv").read_text() == (tmp_path / "front.csv").read_text() == "number\n"
    write_trial(tmp_path, 0, {"train.lr": 0.1}, status="running", step=0, steps=4)
    write_sweep_outputs(tmp_path)
    assert [row["status"] for row in read_csv(tmp_path / "trials.csv")] == ["running"]
    assert read_csv(tmp_path / "front.csv") == [] and not (tmp_path / "front.png").exists()
    assert "No trial has finished yet" in (tmp_path / "report.html").read_text()


def best(capsys, *words):
    code = answer(run_sweep, ["best", *map(str, words)])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_the_best_config_gives_the_circuit_of_the_trial(swept, tmp_path, capsys):
    number = on_front(swept)[1]
    neurons, kl = row_of(swept, number)["kept"]["total"], row_of(swept, number)["scores"]["kl"]["mean"]
    for words in (("--kl", kl), (f"--neurons={neurons}",)):
        code, printed, _ = best(capsys, swept, *words)
        assert code == 0
        assert printed.startswith(f"# trial {number} of {swept}: {neurons} of 1792 neurons, held-out KL {kl:.4g} nats")
        assert str(trial_folder(swept, number).path / "circuit.safetensors") in printed
    assert yaml.safe_load(printed).keys() == {"task", "ablation", "target", "train", "output"}, "no default is said"
    (tmp_path / "best.yaml").write_text(printed)
    made, config = load(tmp_path / "best.yaml"), json.loads(trial_folder(swept, number).config.read_text())["config"]
    assert made.output == f"{swept}_{number:03d}"
    assert made.train.model_dump(mode="json") == config["train"] and made.target.total == config["target"]["total"]
    assert answer(run_prune, ["--config", str(tmp_path / "best.yaml"), "--output", str(tmp_path / "again")]) == 0
    again, then = (
        Circuit.load(path / "circuit.safetensors") for path in (tmp_path / "again", trial_folder(swept, number).path)
    )
    assert all(torch.equal(mask, then.masks[name]) for name, mask in again.masks.items())
    assert all(torch.equal(values, then.log_alpha[name]) for name, values in again.log_alpha.items())


@pytest.mark.parametrize(("words", "reason"), [
    (["SWEEP", "--kl", "1e-9"], "none of 5 finished trials has a held-out KL of at most 1e-09; the nearest is trial 4 with 1400"),
    (["SWEEP", "--neurons", "59"], "none of 5 finished trials has at most 59 neurons; the nearest is trial 1 with 60 neurons"),
    (["SWEEP"], "sweep best needs one bound, --kl NATS or --neurons COUNT"),
    (["SWEEP", "--kl", "1", "--neurons", "9"], "sweep best needs one bound"),
    (["SWEEP", "--heads", "3"], "sweep best has no option --heads; it has --kl NATS and --neurons COUNT"),
    (["SWEEP", "--neurons", "many"], "--neurons many: give a count"),
    (["--kl", "1"], "sweep best needs one sweep's folder, not 0"),
    (["/nowhere", "--kl", "1"], "/nowhere: holds no sweep (no sweep.json)"),
])  # fmt: skip
def test_mistakes_with_best_are_one_line(swept, capsys, words, reason):
    code, printed, error = best(capsys, *(swept if word == "SWEEP" else word for word in words))
    assert (code, printed) == (2, "") and reason in error and error.count("\n") == 1


@pytest.mark.parametrize(("name", "content"), [
    ("sweep.json", "{"), ("sweep.json", "{}"), ("trials/001/trial.json", "[]"), ("trials/001/trial.json", None),
    ("trials/001/summary.json", "{"), ("trials/001/summary.json", EMPTY), ("trials/001/summary.json", None),
    ("trials/001/circuit.safetensors", "x"), ("trials/001/circuit.safetensors", None),
])  # fmt: skip
def test_a_broken_file_is_named_in_one_line(swept, tmp_path, capsys, name, content):
    folder = copied(swept, tmp_path)
    (folder / name).unlink() if content is None else (folder / name).write_text(content)
    assert answer(lambda _: write_sweep_outputs(folder), []) == 2
    error = capsys.readouterr().err
    assert str(folder / name) in error and error.count("\n") == 1


def test_report_draws_the_sweep_again_with_its_figures(swept, tmp_path, capsys):
    folder = copied(swept, tmp_path)
    (folder / "report.html").unlink()
    assert answer(run_report, [str(folder), "--figures", str(tmp_path / "f")]) == 0
    assert str(folder / "report.html") in capsys.readouterr().out.split()
    names = {path.name for path in (tmp_path / "f").iterdir()}
    figures = {"trials", "setting_train.lr", "setting_target.total", "training_kl", "overlap", "model_trial_4"}
    assert {f"{name}.{kind}" for name in figures for kind in ("svg", "png", "pdf")} <= names
    assert answer(run_report, [str(folder), str(tmp_path)]) == 2
    assert "a sweep has a page of its own" in capsys.readouterr().err
