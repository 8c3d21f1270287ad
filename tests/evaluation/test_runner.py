"""All circuits under all ablations on all tasks, also on two ranks that divide the weights."""

import json

import pytest

from bigcircuit.distributed.ranks import Ranks
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.evaluate import evaluate_circuits
from bigcircuit.evaluation.runner import EvaluationRunner
from bigcircuit.results.result_files import read_result
from tests.helpers.launch import DEEPSPEED_CONFIGS, ROOT, launch
from tests.helpers.short_runs import FAST, run


def test_two_ranks_with_weights_in_pieces_find_the_same(tmp_path):
    finished = run(tmp_path / "run").path
    options = {**FAST, "output": str(tmp_path / "one")}
    evaluate_circuits([str(finished)], EvaluationSettings(**options), Ranks())
    words = [word for name, value in FAST.items() for word in (f"--{name}", str(value).strip("[]"))]
    words += ["--output", str(tmp_path / "two"), "--deepspeed", str(DEEPSPEED_CONFIGS / "zero3.json")]
    launch(2, str(ROOT / "launchers/evaluate.py"), str(finished), *words, timeout=200)
    one, two = (flat(read_result(tmp_path / name / "evaluation.json")["circuits"]) for name in ("one", "two"))
    assert one.keys() == two.keys()
    for key, value in one.items():
        assert two[key] == (pytest.approx(value, rel=1e-4, abs=1e-4) if isinstance(value, float) else value), key


def flat(value, prefix=""):
    """Nested data as one mapping."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {prefix: value}
    return {key: one for name, part in items for key, one in flat(part, f"{prefix}.{name}").items()}


def test_control_and_other_tasks(finished, tmp_path):
    control = run(tmp_path / "control", task__labels="random", task__split__by="template").path
    other = tmp_path / "induction"
    other.mkdir()
    settings = {"config": {"task": {"name": "induction", "size": 40, "labels": "random"}}}
    (other / "config.json").write_text(json.dumps(settings))  # a run folder
    options = {**FAST, "draws": 0, "groups": 0, "methods": "none", "control": str(control), "tasks": str(other)}
    found = evaluate_circuits([str(finished)], EvaluationSettings(**options, output=str(tmp_path)), Ranks())
    assert [(one.control, one.labels) for one in found.circuits] == [(False, "own"), (True, "random")]
    assert list(found.tasks) == ["ioi", "induction"]
    cells = {(cell.circuit, cell.task): cell for cell in found.cross["interchange"]}
    assert len(cells) == 4
    for one in found.circuits:
        cell = cells[one.name, "ioi"]
        assert cell.own and not cells[one.name, "induction"].own
        assert cell.scores["kl"].mean == pytest.approx(one.ablations["interchange"].circuit["kl"].mean, rel=1e-5)
    assert (tmp_path / "evaluation.json").exists()


def test_what_is_done_stays_when_it_stops_at_a_later_ablation(finished, tmp_path, monkeypatch):
    evaluate_under = EvaluationRunner.evaluate_under

    def stops(self, name):
        if name == "zero":
            raise KeyboardInterrupt
        evaluate_under(self, name)

    monkeypatch.setattr(EvaluationRunner, "evaluate_under", stops)
    options = {**FAST, "draws": 0, "groups": 0, "methods": "integrated_gradients", "levels": "mlp_output"}
    with pytest.raises(KeyboardInterrupt):
        settings = EvaluationSettings(**options, ablations="interchange,zero", output=str(tmp_path))
        evaluate_circuits([str(finished)], settings, Ranks())
    found = read_result(tmp_path / "evaluation.json")
    assert list(found["circuits"][0]["ablations"]) == ["interchange"] and found["unfinished"] == ["zero"]
    assert found["no_curves"] == ["integrated_gradients has no scores of MLP outputs, so there is no curve of them."]
