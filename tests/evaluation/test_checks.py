"""Four answers about a circuit, and what they hang on."""

from dataclasses import replace

import pytest

from bigcircuit.evaluation.checks import checks
from bigcircuit.metrics.registry import Score
from bigcircuit.results.evaluation import Drawn, EvaluatedCircuit, Minimality, RandomCircuits, UnderAblation


def score(mean, low=None, high=None):
    low, high = (mean if end is None else end for end in (low, high))
    return Score(mean=mean, low=low, high=high, min=None, p5=None, p95=None, max=None)


def drawn(better, draws):
    p = (better + 1) / (draws + 1)
    return RandomCircuits(
        draws=draws,
        scores={"kl": Drawn(mean=1.0, sd=0.0, min=1.0, p5=1.0, p95=1.0, max=1.0, better=better, p=p)},
        distinct=True,
    )


def minimality(kept, unnecessary):
    return {"head": Minimality(kept, group=1, tolerance=0.0, dropped=[], unnecessary=unnecessary, together=None)}


GOOD = UnderAblation(
    means=None,
    circuit={"exact_match": score(0.97, 0.94, 0.99), "kl": score(0.1)},
    complement={"recovered": score(0.1, 0.0, 0.2)},
    empty={},
    random=drawn(0, 100),
    partial=[],
    minimality=minimality(10, 0),
    off_distribution=None,
)


def circuit_with(under):
    blank = dict.fromkeys(EvaluatedCircuit.__dataclass_fields__)
    return EvaluatedCircuit(**{**blank, "ablations": {"zero": under}})


def answers(**changes):
    return {check.name: check.answer for check in checks(circuit_with(replace(GOOD, **changes)))}


def test_a_circuit_with_everything():
    assert answers() == dict.fromkeys(("faithful", "complete", "better than random", "minimal"), "yes")


@pytest.mark.parametrize(
    "match, answer", [(score(0.95, 0.85, 0.99), "partly"), (score(0.8, 0.7, 0.95), "no"), (score(0.9, 0.9, 1.0), "yes")]
)
def test_faithful_by_the_lower_end_of_the_interval(match, answer):
    assert answers(circuit={"exact_match": match, "kl": score(0.1)})["faithful"] == answer


@pytest.mark.parametrize(
    "rest, answer",
    [
        (score(0.4, 0.3, 0.6), "partly"),
        (score(0.7), "no"),
        (score(-0.004, -0.01, 0.0), "yes"),
        (score(float("nan")), "not measured"),
    ],
)
def test_complete_by_what_the_rest_recovers(rest, answer):
    assert answers(complement={"recovered": rest})["complete"] == answer


@pytest.mark.parametrize(
    "random, answer",
    [
        (None, "not measured"),
        (replace(drawn(0, 100), distinct=False), "not measured"),
        (drawn(0, 5), "partly"),
        (drawn(3, 100), "yes"),
        (drawn(30, 100), "no"),
        (drawn(2, 5), "no"),
    ],
)
def test_better_than_random_needs_draws_enough(random, answer):
    assert answers(random=random)["better than random"] == answer


@pytest.mark.parametrize(
    "found, answer", [({}, "not measured"), (minimality(20, 2), "partly"), (minimality(20, 3), "no")]
)
def test_minimal_by_the_share_that_is_not_needed(found, answer):
    assert answers(minimality=found)["minimal"] == answer


def test_no_minus_zero_is_shown():
    circuit = circuit_with(replace(GOOD, complement={"recovered": score(-0.004, -0.004, 0.001)}))
    assert "recovers 0% of the logit difference (0% to 0%)" in checks(circuit)[1].evidence
