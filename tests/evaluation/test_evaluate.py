"""`bigcircuit evaluate` on circuits whose truth is known, and what it writes."""

import json
import math
from dataclasses import replace

import pytest
import torch

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.masks import complete_masks
from bigcircuit.cli import answer, run_evaluate
from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.evaluate import evaluate_circuits
from bigcircuit.evaluation.verdict import with_verdict
from bigcircuit.io.files import write_json
from bigcircuit.metrics.registry import SCORES, example_scores
from bigcircuit.metrics.score import ExampleScores, summarise
from bigcircuit.model.granularity import GRANULARITIES
from bigcircuit.model.load import skeleton
from bigcircuit.planted.induction import induction_pairs
from tests.helpers.pair_files import write_pairs
from tests.helpers.short_runs import FAST, run


def test_scores_are_those_of_the_run(finished, result):
    """The same pairs, masks and ablation give what the run itself wrote."""
    summary = json.loads((finished / "summary.json").read_text())
    (circuit,) = result["circuits"]
    under = circuit["ablations"]["interchange"]
    for name in (name for name, kind in SCORES.items() if "pairs" in kind.on):
        for key, row in (("circuit", summary["members"][0]["scores"]), ("empty", summary["empty"])):
            assert under[key][name]["mean"] == pytest.approx(row[name]["mean"], rel=1e-4, abs=1e-5), name
    assert circuit["kept"] == summary["members"][0]["kept"]
    assert circuit["parameters_kept"] == summary["members"][0]["parameters_kept"]
    assert result["tasks"]["ioi"]["full"]["kl"]["mean"] == 0


def test_what_no_number_can_be_is_null(tmp_path):
    write_json(tmp_path / "x.json", {"a": [float("nan"), 1.5, (float("inf"), "b")]})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5, [None, "b"]]}
    scores = ExampleScores({name: torch.ones(1, 3) for name in example_scores()})
    assert math.isnan(summarise(scores, scores, 0, scores)["recovered"].mean)


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
