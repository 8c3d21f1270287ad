"""`bigcircuit.evaluate`, with metrics of the caller's own."""

import json

import pytest
import torch

import bigcircuit
from bigcircuit.errors import UserError
from bigcircuit.metrics.registry import SCORES

FAST = {"draws": 2, "partial_draws": 0, "groups": 0, "methods": "none"}


def cross_entropy(logits, batch):
    """Minus the log-probability of the right answer: what the table has too, for answers of one token."""
    log_p = logits.log_softmax(-1)[batch.token_score, batch.token_id]
    right = batch.correct[batch.continuation_of_token]
    owner = batch.example_of_continuation[batch.continuation_of_token][right]
    return torch.zeros(len(batch.ids)).index_add(0, owner, -log_p[right])


@pytest.fixture(scope="module")
def run(finished_run, tmp_path_factory):
    import shutil

    return shutil.copytree(finished_run.path, tmp_path_factory.mktemp("own") / "run")


def test_a_metric_of_the_caller_is_a_score_of_every_circuit(run):
    found = bigcircuit.evaluate(run, metrics={"mine": cross_entropy}, quiet=True, **FAST)
    [under] = found.circuits[0].ablations.values()
    for scores in (under.circuit, under.complement, under.empty):
        assert scores["mine"].mean == pytest.approx(scores["cross_entropy"].mean, rel=1e-5)
    assert "mine" not in SCORES
    written = json.loads((run / "evaluation.json").read_text())["circuits"][0]["ablations"]["interchange"]
    assert written["circuit"]["mine"]["mean"] == under.circuit["mine"].mean and "mine" in written["random"]["scores"]


def test_a_file_with_metrics_that_are_not_known_now_still_opens(run):
    from bigcircuit.report.render import render_run

    bigcircuit.evaluate(str(run), metrics={"mine": cross_entropy}, quiet=True, **FAST)
    assert "Interchange ablation" in render_run(run).read_text()


@pytest.mark.parametrize(
    "metrics, message",
    [
        ({"kl": cross_entropy}, "'kl' is a score already"),
        ({"my score": cross_entropy}, "'my score' is a score already or no name"),
        ({"mine": 3}, "mine is of type int"),
        ({"mine": lambda logits, _: logits}, r"mine returned \[\d+, \d+\] for \d+ pairs"),
        ({"mine": lambda *_: 0.5}, r"mine returned float for \d+ pairs"),
    ],
)
def test_metrics_that_cannot_be_scores_are_refused(run, metrics, message):
    before = dict(SCORES)
    with pytest.raises(UserError, match=message):
        bigcircuit.evaluate(run, metrics=metrics, quiet=True, **FAST)
    assert before == SCORES


def test_a_setting_that_does_not_exist_is_named(run):
    with pytest.raises(UserError, match="drawz is not a setting"):
        bigcircuit.evaluate(run, drawz=3)


def test_a_setting_that_an_evaluation_does_not_read_is_refused(run):
    with pytest.raises(
        UserError, match=r"ablation\.kind: evaluate does not read it, .* its own setting is --ablations"
    ):
        bigcircuit.evaluate(run, **{"ablation.kind": "mean"})
