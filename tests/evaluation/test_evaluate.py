"""`bigcircuit evaluate` on circuits whose truth is known, and what it writes."""

import json
import math
from dataclasses import replace

import pytest
import torch

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.attribution.baselines import BASELINES
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.masks import complete_masks
from bigcircuit.circuit.overlap import OPERATIONS
from bigcircuit.cli import answer, run_evaluate
from bigcircuit.config.load import load
from bigcircuit.ablation.kinds import KINDS
from bigcircuit.data.dataset import load_task
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.evaluation.config import ComparisonSettings, EvaluationSettings
from bigcircuit.evaluation.console import with_verdict
from bigcircuit.evaluation.evaluate import evaluate_circuits
from bigcircuit.evaluation.runner import EvaluationRunner
from bigcircuit.forward.reference_logits import ReferenceLogits
from bigcircuit.forward.streams import Streams
from bigcircuit.io.files import write_json
from bigcircuit.metrics.registry import SCORES, example_scores
from bigcircuit.metrics.score import ExampleScores, score, summarise
from bigcircuit.model.granularity import GRANULARITIES
from bigcircuit.model.load import skeleton
from bigcircuit.planted.induction import induction_pairs
from bigcircuit.results.evaluation import read_result
from tests.helpers.pair_files import write_pairs
from tests.helpers.short_runs import FAST, QUICK, run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("evaluate") / "run", task__split__by="template").path


@pytest.fixture(scope="module")
def result(finished):
    options = {**FAST, "ablations": "interchange,zero,mean"}
    evaluate_circuits([str(finished)], EvaluationSettings(**options), Ranks())
    return read_result(finished / "evaluation.json")


def test_scores_are_those_of_the_run(finished, result):
    """The same pairs, masks and ablation give what the run itself wrote."""
    summary = json.loads((finished / "summary.json").read_text())
    (circuit,) = result["circuits"]
    under = circuit["ablations"]["interchange"]
    for name in SCORES:
        for key, row in (("circuit", summary["members"][0]["scores"]), ("empty", summary["empty"])):
            assert under[key][name]["mean"] == pytest.approx(row[name]["mean"], rel=1e-4, abs=1e-5), name
    assert circuit["kept"] == summary["members"][0]["kept"]
    assert circuit["parameters_kept"] == summary["members"][0]["parameters_kept"]
    assert result["tasks"]["ioi"]["full"]["kl"]["mean"] == 0


def test_every_score_stands_under_its_ablation_with_interval_and_tails(result):
    (circuit,) = result["circuits"]
    assert list(circuit["ablations"]) == ["interchange", "zero", "mean"]
    for under in circuit["ablations"].values():
        for key in ("circuit", "complement", "empty"):
            assert set(under[key]) == set(SCORES)
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


def test_what_no_number_can_be_is_null(tmp_path):
    write_json(tmp_path / "x.json", {"a": [float("nan"), 1.5, (float("inf"), "b")]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5, [None, "b"]]}
    scores = ExampleScores({name: torch.ones(1, 3) for name in example_scores()})
    assert math.isnan(summarise(scores, scores, 0, scores)["recovered"].mean)


def test_held_out_templates_are_apart(finished, result):
    task = result["tasks"]["ioi"]
    off = result["circuits"][0]["ablations"]["interchange"]["off_distribution"]
    assert off["pairs"] == task["pairs"]["off_distribution"] > 0
    assert task["full_off_distribution"]["kl"]["mean"] == 0
    config = load(None, {**QUICK, "task.split.by": "template"})
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["pairs"]["off_distribution"] == off["pairs"]
    assert sum(task["pairs"].values()) == config.task.size


def test_minimality_is_measured_under_the_ablation_of_the_circuit_only(result):
    ablations = result["circuits"][0]["ablations"]
    assert not ablations["zero"]["minimality"]
    found = ablations["interchange"]["minimality"]
    kept = result["circuits"][0]["kept"]
    assert set(found) == {name for name in kept if kept[name] and name != "total"}
    for name, one in found.items():
        assert (
            sum(len(group["nodes"]) for group in one["dropped"]) == one["kept"] == result["circuits"][0]["kept"][name]
        )
        assert len(one["dropped"]) <= 4 + 3
        spare = sum(len(group["nodes"]) for group in one["dropped"] if not group["necessary"])
        assert one["unnecessary"] == spare
        changes = [group["kl_change"]["mean"] for group in one["dropped"]]
        assert changes == sorted(changes, reverse=True)


def test_curves_end_at_the_full_model(result):
    (curve,) = result["curves"]["zero"]
    assert curve["draws"] == 10 and curve["cpr_sd"] > 0
    assert curve["cpr_low"] <= curve["cpr"] <= curve["cpr_high"]
    assert result["unfinished"] == result["no_curves"] == []
    assert (curve["method"], curve["level"], curve["ranking"]) == ("random", "head", "signed")
    assert len(curve["points"]) == 10
    assert curve["points"][-1]["faithfulness"] == pytest.approx(1, abs=1e-4)


@pytest.fixture(scope="module")
def induction(shared, tmp_path_factory):
    """A circuit file with the two heads that are known to do induction, and one with a decoy as well."""
    folder = tmp_path_factory.mktemp("induction")
    model = str(shared / "models/induction_2L1H")
    pairs = write_pairs(folder / "pairs.jsonl", induction_pairs(300))
    config = folder / "task.yaml"
    config.write_text(
        f"model: {{path: {model}}}\ntask: {{name: pairs, path: {pairs}, keep: solved}}\ntrain: {{batch_size: 16}}\n"
    )
    shapes = skeleton(load(config).model).shapes
    width, head = shapes[0].heads * shapes[0].head_dim, shapes[0].head_dim
    for name, heads in (("true", [[0], [0]]), ("decoy", [[0, 1], [0]])):
        neurons = torch.zeros(2, width, dtype=torch.bool)
        for layer, kept in enumerate(heads):
            for one in kept:
                neurons[layer, one * head : (one + 1) * head] = True
        masks = complete_masks(
            {"attention_neuron": neurons, "mlp_neuron": torch.zeros(2, shapes[0].intermediate, dtype=torch.bool)},
            shapes,
        )
        widths = {n: [g.width(s) for s in shapes] for n, g in GRANULARITIES.items()}
        Circuit(masks, {}, {"widths": json.dumps(widths)}).save(folder / f"{name}.safetensors")
    return folder


def test_induction_needs_head_0_of_both_layers_and_nothing_else(induction):
    names = [str(induction / f"{name}.safetensors") for name in ("true", "decoy")]
    settings = EvaluationSettings(draws=40, partial_draws=1, methods=(), groups=8, output=str(induction))
    found = evaluate_circuits(names, settings, Ranks(), config=str(induction / "task.yaml"))
    true, decoy = (circuit.ablations["interchange"] for circuit in found.circuits)
    assert true.circuit["kl"].mean < 0.01
    assert true.circuit["exact_match"].mean == 1
    assert true.complement["exact_match"].mean < 0.05, "without the circuit the model fails"
    assert true.complement["kl"].mean > 5
    assert {(d.layer, *d.nodes) for d in true.minimality["head"].dropped if d.necessary} == {(0, 0), (1, 0)}
    needed = {(d.layer, *d.nodes): d.necessary for d in decoy.minimality["head"].dropped}
    assert needed == {(0, 0): True, (0, 1): False, (1, 0): True}
    assert decoy.minimality["head"].unnecessary == 1
    assert decoy.minimality["head"].together["kl"].mean == pytest.approx(true.circuit["kl"].mean, abs=1e-5)
    # A head of two in each of two layers: a quarter of the random circuits are the true one, the others fail.
    assert true.random.distinct and 1 <= true.random.scores["kl"].better <= 20
    assert true.random.scores["kl"].p95 > 5
    assert "(2 of 4 heads)" in found.verdict
    unknown = replace(true, circuit={**true.circuit, "recovered": replace(true.circuit["recovered"], mean=math.nan)})
    nothing = replace(found.circuits[0], kept={"total": 0, "head": 0}, ablations={"interchange": unknown})
    said = with_verdict(replace(found, circuits=[nothing])).verdict
    assert said.startswith("This circuit keeps nothing. Closing everything changes no mean logit difference, ")


def test_a_mean_ablated_circuit_uses_the_constants_of_its_run(tmp_path):
    folder = run(tmp_path / "run", ablation__kind="mean", ablation__data="induction").path
    found = evaluate_circuits([str(folder)], EvaluationSettings(**FAST), Ranks())
    summary = json.loads((folder / "summary.json").read_text())
    kl = summary["members"][0]["scores"]["kl"]["mean"]
    assert found.circuits[0].ablations["mean"].circuit["kl"].mean == pytest.approx(kl, rel=1e-4)


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "needs a run folder or a circuit file"),
        (["{tmp}"], "holds no run"),
        (["{tmp}/none.safetensors"], "no such circuit file"),
        (["{run}", "--ablations", "telepathy"], "telepathy is not known"),
        (["{run}", "--draws", "many"], "--draws"),
        (["{run}", "--levels", "atom"], "atom is not known"),
        (["{run}", "--fractions", "0.5,2"], "--fractions"),
        (["{run}", "--dras", "4"], "--dras is not a setting"),
        (["{run}", "--tasks", "{tmp}/none.yaml"], "no such config file"),
        (["{run}", "--ablations"], "--ablations needs a value"),
        (["{run}", "--seed=[1"], "--seed: [1 is not readable"),
        (["{run}", "--methods", "all,psychic"], "psychic is not known"),
        (["{run}", "--config", "{tmp}/task.yaml"], "is a run folder, which has a config of its own"),
        (["{run}", "--tasks", "{tmp}/pairs.jsonl"], "`task: {{name: pairs, path: {tmp}/pairs.jsonl}}` and name that"),
        (["{run}", "--output", "/proc/here"], "/proc/here: cannot be written"),
        (
            ["{run}", "--ablations", "mean", "--ablation.data", "{tmp}/none.jsonl"],
            "none.jsonl: no such file; set ablation.data",
        ),
    ],
)
def test_mistakes_are_one_line(finished, tmp_path, capsys, words, message):
    assert answer(run_evaluate, [word.format(run=finished, tmp=tmp_path) for word in words]) == 2
    shown = capsys.readouterr().err
    assert message.format(tmp=tmp_path) in shown and len(shown.splitlines()) == 1


def test_what_is_done_stays_when_it_stops_at_a_later_ablation(finished, tmp_path, monkeypatch):
    under = EvaluationRunner.under

    def stops(self, name):
        if name == "zero":
            raise KeyboardInterrupt
        under(self, name)

    monkeypatch.setattr(EvaluationRunner, "under", stops)
    options = {**FAST, "draws": 0, "groups": 0, "methods": "integrated_gradients", "levels": "mlp_output"}
    with pytest.raises(KeyboardInterrupt):
        settings = EvaluationSettings(**options, ablations="interchange,zero", output=str(tmp_path))
        evaluate_circuits([str(finished)], settings, Ranks())
    found = read_result(tmp_path / "evaluation.json")
    assert list(found["circuits"][0]["ablations"]) == ["interchange"] and found["unfinished"] == ["zero"]
    assert found["no_curves"] == ["integrated_gradients has no scores of MLP outputs, so there is no curve of them."]


def test_all_and_each_name_once():
    every = EvaluationSettings()
    assert every.rankings == ("learned", *BASELINES)
    assert EvaluationSettings(methods="all,random").rankings == every.rankings
    assert EvaluationSettings(methods="none").rankings == ()
    assert EvaluationSettings(ablations="zero,all").ablations == tuple(KINDS)
    assert ComparisonSettings(save="all").save == tuple(OPERATIONS)


def test_circuit_and_model_must_fit(finished, tmp_path, capsys, monkeypatch):
    circuit = Circuit.load(finished / "circuit.safetensors")
    other = tmp_path / "other.safetensors"
    Circuit(circuit.masks, {}, {**circuit.metadata, "model_weights_sha256": "1" * 64}).save(other)
    config = tmp_path / "task.yaml"
    config.write_text("task: {name: ioi, size: 40}\n")
    words = [str(other), "--config", str(config)]
    monkeypatch.setattr("bigcircuit.evaluation.evaluate.load_frozen", lambda *_: pytest.fail("weights were loaded"))
    assert answer(run_evaluate, words) == 2
    assert "whose weights hash is 111111111111" in capsys.readouterr().err
    cut = {name: mask[:3] for name, mask in circuit.masks.items()}
    Circuit(cut, {}, {}).save(other)
    assert answer(run_evaluate, words) == 2
    assert "in 3 layers and the model" in capsys.readouterr().err
    assert answer(run_evaluate, [str(other)]) == 2
    assert "give --config FILE" in capsys.readouterr().err


def test_many_circuits_score_the_same_in_any_number_of_passes(embedded):
    frozen, tokenizer = embedded
    examples = load_task(load(None, {"task.size": 30}).task, tokenizer, frozen.model.config).splits["test"]
    generator = torch.Generator().manual_seed(0)
    sizes = {"attention_neuron": 128, "mlp_neuron": 320}
    circuits = [{n: torch.rand(4, w, generator=generator) > 0.3 for n, w in sizes.items()} for _ in range(5)]
    with Streams(frozen, INTERCHANGE) as streams:
        together = score(streams, examples, circuits, MicroBatches(8))
        apart = score(streams, examples, circuits, MicroBatches(8), at_once=2)
        beside = score(streams, examples, circuits, MicroBatches(8), at_once=2, full=True)
        full = score(streams, examples, None, MicroBatches(8))
        cached = ReferenceLogits(streams, examples, MicroBatches(8), full=True)
        again = score(streams, examples, circuits, MicroBatches(8), at_once=2, references=cached)
    for name in together:
        torch.testing.assert_close(apart[name], together[name], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(again[name], apart[name], atol=1e-6, rtol=1e-6)
        assert torch.equal(beside[name], torch.cat([apart[name], full[name]])), name
    assert (together["cross_entropy"] >= 0).all()
