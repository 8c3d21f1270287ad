"""All scores of one circuit under each ablation."""

import json

import pytest

from bigcircuit.config.load import load
from bigcircuit.metrics.registry import SCORES
from tests.helpers.short_runs import QUICK


def test_every_score_stands_under_its_ablation_with_interval_and_tails(result):
    (circuit,) = result["circuits"]
    assert list(circuit["ablations"]) == ["interchange", "zero", "mean"]
    for under in circuit["ablations"].values():
        for key in ("circuit", "complement", "empty"):
            assert set(under[key]) == {name for name, kind in SCORES.items() if "pairs" in kind.on}
            for name, one in under[key].items():
                assert one["low"] <= one["mean"] + 1e-9 and one["mean"] <= one["high"] + 1e-9
                if name != "recovered":
                    assert one["min"] <= one["p5"] <= one["p95"] <= one["max"]
        assert under["partial"][0]["kl"] == pytest.approx(under["circuit"]["kl"]["mean"], rel=1e-4)
        assert under["partial"][-1]["kl"] == pytest.approx(0, abs=1e-5), "everything open is the full model"
        assert [point["fraction"] for point in under["partial"]] == [0, 0.5, 1]
        drawn = under["random"]["scores"]["kl"]
        assert under["random"]["draws"] == 4
        assert drawn["p"] == (drawn["better"] + 1) / 5
    kls = [under["empty"]["kl"]["mean"] for under in circuit["ablations"].values()]
    assert len(set(kls)) == 3, "ablations differ"


def test_recovered_is_measured_from_the_empty_circuit(result):
    full = result["tasks"]["ioi"]["full"]
    assert full["recovered"]["mean"] == full["recovered"]["low"] == 1
    for under in result["circuits"][0]["ablations"].values():
        m = {key: under[key]["logit_difference"]["mean"] for key in ("circuit", "complement", "empty")}
        for key, value in m.items():
            expected = (value - m["empty"]) / (full["logit_difference"]["mean"] - m["empty"])
            assert under[key]["recovered"]["mean"] == pytest.approx(expected, rel=1e-6, abs=1e-9)
        drawn = under["random"]["scores"]
        expected = (drawn["logit_difference"]["mean"] - m["empty"]) / (full["logit_difference"]["mean"] - m["empty"])
        assert drawn["recovered"]["mean"] == pytest.approx(expected)


def test_held_out_templates_are_apart(finished, result):
    task = result["tasks"]["ioi"]
    off = result["circuits"][0]["ablations"]["interchange"]["off_distribution"]
    assert off["pairs"] == task["pairs"]["off_distribution"] > 0
    assert task["full_off_distribution"]["kl"]["mean"] == 0
    config = load(None, {**QUICK, "task.split.by": "template"})
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["pairs"]["off_distribution"] == off["pairs"]
    assert sum(task["pairs"].values()) == config.task.size
