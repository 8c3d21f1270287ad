"""Scorers under shared constants and under constants of each circuit."""

import pytest
import torch

from bigcircuit.ablation.ablation import ZERO, Ablation
from bigcircuit.ablation.kinds import KINDS
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.evaluation.ablation_constants import CircuitConstants, MeanData
from bigcircuit.evaluation.scorer import ConstantFitter, Scorer, ScoringContext, make_scorer
from bigcircuit.forward.activation_means import mean_ablation
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.score import score
from tests.helpers.tiny_models import TINY, tiny_examples, tiny_model


@pytest.fixture(scope="module")
def context():
    return ScoringContext(
        frozen=tiny_model("llama", TINY), train=tiny_examples(4), micro_batches=MicroBatches(2), at_once=2
    )


def random_circuits(count):
    generator = torch.Generator().manual_seed(0)
    sizes = {"attention_neuron": 32, "mlp_neuron": 48}
    return [{name: torch.rand(3, n, generator=generator) > 0.4 for name, n in sizes.items()} for _ in range(count)]


def scored(context, ablation, circuits):
    with Streams(context.frozen, ablation) as streams:
        return score(streams, context.train, circuits, context.micro_batches)


@pytest.mark.parametrize("name", list(KINDS))
def test_every_kind_has_a_scorer(context, name):
    data = MeanData(None, "both") if KINDS[name].needs_moments else None
    scorer = make_scorer(name, context, CircuitConstants(None, data, None))
    assert scorer.fits_constants == KINDS[name].learned
    if name == "mean":
        means = mean_ablation(context.frozen, context.train, context.micro_batches, prompts="both")
        assert all(torch.equal(scorer.ablation.constants[site], rows) for site, rows in means.constants.items())
    if not scorer.fits_constants:
        circuits = random_circuits(3)
        found, expected = scorer(context.train, circuits), scored(context, scorer.ablation, circuits)
        torch.testing.assert_close(found["kl"], expected["kl"], atol=1e-5, rtol=1e-4)
        assert scorer.with_constants(ZERO).ablation is ZERO


def constants(value):
    sizes = {"attention": 32, "mlp": 48}
    return Ablation("optimal", {site: torch.full((1, 3, 1, n), value) for site, n in sizes.items()})


def test_saved_constants_are_kept_and_only_the_others_are_fitted(context, monkeypatch):
    """A fitter that gives every circuit of a call another constant; two circuits share a pass."""
    asked = []

    def fit(_, circuits):
        asked.append(len(circuits))
        numbers = [constants(0.1 * (sum(asked) - len(circuits) + i + 1)).constants for i in range(len(circuits))]
        return Ablation("optimal", {site: torch.cat([row[site] for row in numbers]) for site in numbers[0]})

    monkeypatch.setattr(ConstantFitter, "__init__", lambda _: None)
    monkeypatch.setattr(ConstantFitter, "__call__", fit)
    circuits = random_circuits(5)
    found = Scorer(context, ConstantFitter())(context.train, circuits, [constants(0.7), None, constants(0.9)])
    assert asked == [1, 1, 1], "of each pass the circuits without constants"
    for row, value in enumerate((0.7, 0.1, 0.9, 0.2, 0.3)):
        expected = scored(context, constants(value), [circuits[row]])
        torch.testing.assert_close(found["kl"][row], expected["kl"][0], atol=1e-5, rtol=1e-4)
