"""Whole runs on general text: corpora and own samples, resumed, on two ranks, and what they print and write."""

import json

import pytest
import torch

import bigcircuit
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from tests.helpers.interrupted_runs import Result, run_or_resume, stop
from tests.helpers.launch import DEEPSPEED_CONFIGS, launch, option_words
from tests.helpers.short_runs import run

TEXT = {
    "task.name": "text",
    "task.text.window": 24,
    "task.text.logit_chunk": 50,
    "ablation.kind": "mean",
    "train.steps": 6,
    "train.batch_size": 8,
    "train.micro_batch_size": 4,
    "train.log_every": 1,
    "train.validate_every": 3,
    "train.save_every": 2,
    "target.total": 400,
}
OVERRIDES = {key.replace(".", "__"): value for key, value in {**TEXT, "task.size": 400}.items()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A JSONL file of 30 short documents."""
    file = tmp_path_factory.mktemp("corpus") / "stories.jsonl"
    names = ("Tom", "Lily", "Ben", "Sue", "Max")
    lines = [f"One day {names[n % 5]} and {names[n % 4]} went to the park {n}. " * (1 + n % 3) for n in range(30)]
    file.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return str(file)


def test_a_run_prints_perplexities_and_its_summary_and_page_have_them(corpus, tmp_path, capsys):
    folder = run(tmp_path / "run", **OVERRIDES, task__path=corpus)
    summary = json.loads(folder.summary.read_text())
    (member,), full = summary["members"], summary["full"]
    assert set(full) == {*("kl", "cross_entropy", "log_likelihood", "recovered_likelihood", "perplexity", "agreement")}
    assert 1 < full["perplexity"]["low"] < full["perplexity"]["mean"] < member["scores"]["perplexity"]["mean"]
    assert member["kept"]["total"] == 400 and member["scores"]["kl"]["mean"] > 0
    assert "perplexity" in folder.report.read_text()
    assert "windows" in capsys.readouterr().out


def test_a_run_is_evaluated_by_tokens_and_what_needs_pairs_is_refused(corpus, tmp_path):
    folder = run(tmp_path / "run", **OVERRIDES, task__path=corpus)
    quick = {"draws": 2, "partial_draws": 0, "groups": 2, "levels": ("neuron",), "quiet": True}
    found = bigcircuit.evaluate(str(folder.path), methods=("learned", "fluctuation", "taylor"), **quick)
    (circuit,) = found.circuits
    under = circuit.ablations["mean"]
    assert under.circuit["perplexity"].mean > found.tasks[circuit.task].full["perplexity"].mean > 1
    summary = json.loads(folder.summary.read_text())["members"][0]["scores"]
    assert under.circuit["perplexity"].mean == pytest.approx(summary["perplexity"]["mean"], rel=1e-6)
    assert "of the held-out tokens" in found.verdict and "worst document" in found.verdict
    assert {check.name: check.evidence for check in found.checks}["complete"].count("log-likelihood") == 1
    assert "perplexity" in folder.report.read_text()
    for settings, message in (
        ({"ablations": ("interchange",)}, "is general text, without a second prompt; use any of zero, mean"),
        ({"metrics": {"mine": lambda logits, _: logits}}, "mine take whole logits and task .* is general text"),
    ):
        with pytest.raises(UserError, match=message):
            bigcircuit.evaluate(str(folder.path), quiet=True, **settings)


def test_samples_that_are_alike_count_once(tmp_path):
    """Else the same text could be trained on and held out."""
    settings = {**OVERRIDES, "task__text__window": 2, "task__text__generate": 300, "train__steps": 2}
    summary = json.loads(run(tmp_path / "run", **settings).summary.read_text())
    assert 2 < sum(summary["pairs"].values()) < 300


@pytest.mark.parametrize("loss", ["kl", "cross_entropy"])
def test_training_lowers_the_loss_that_is_asked_for(corpus, tmp_path, loss):
    settings = {**OVERRIDES, "task__path": corpus, "task__text__loss": loss, "train__steps": 30, "train__log_every": 30}
    found = {}
    for name, lr in (("trained", 0.1), ("untrained", 1e-9)):
        folder = run(tmp_path / name, **{**settings, "train__lr": lr})
        scores = json.loads(folder.summary.read_text())["members"][0]["scores"]
        found[name] = scores[loss]["mean"]
    assert found["trained"] < found["untrained"]


def test_a_run_on_own_samples_resumes_to_the_bit(tmp_path):
    settings = {**OVERRIDES, "task__text__generate": 24, "ablation__kind": "optimal", "ablation__finish_steps": 2}
    whole = Result.of(run_or_resume(tmp_path / "whole", Ranks(), **settings))
    for step in (1, 4):
        stop(tmp_path / "cut", Ranks(), step, **settings)
    assert Result.of(run_or_resume(tmp_path / "cut", Ranks(), **settings)).equals(whole)
    circuit = Circuit.load(tmp_path / "whole/circuit.safetensors")
    recorded = circuit.metadata["task_tokens_sha256"]
    run_or_resume(tmp_path / "other", Ranks(), **{**settings, "task__seed": 1})
    other = Circuit.load(tmp_path / "other/circuit.safetensors").metadata["task_tokens_sha256"]
    assert len(recorded) == 64 and recorded != other


def test_two_ranks_with_weights_in_pieces_give_the_bits_of_one(tmp_path):
    settings = {**TEXT, "task.text.generate": 24, "output": str(tmp_path / "two"), "model.path": "embedded"}
    settings["deepspeed"] = str(DEEPSPEED_CONFIGS / "zero3.json")
    launch(2, "-m", "bigcircuit", "prune", *option_words(settings))
    folder = run_or_resume(tmp_path / "one", Ranks(), **OVERRIDES, task__text__generate=24)
    two, one = (Circuit.load(tmp_path / name / "circuit.safetensors") for name in ("two", "one"))
    assert two.metadata["task_tokens_sha256"] == one.metadata["task_tokens_sha256"]
    for name, values in one.log_alpha.items():
        assert torch.equal(values, two.log_alpha[name]), name
    found = [
        json.loads((path / "summary.json").read_text())["members"][0]["scores"] for path in (folder, tmp_path / "two")
    ]
    assert found[0] == found[1]


def test_a_model_without_a_start_token_writes_no_samples(tmp_path, shared):
    with pytest.raises(UserError, match="neither a start nor an end token; set task.path to a corpus"):
        run(
            tmp_path / "run",
            **{**OVERRIDES, "task__text__window": 8},
            task__text__generate=4,
            model__path=str(shared / "models/induction_2L1H"),
        )
