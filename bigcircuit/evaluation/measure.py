"""All scores of one circuit under one ablation: with itself, without it, and beside what chance and other sizes do."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bigcircuit.ablated import Ablation
from bigcircuit.evaluation.bench import Bench
from bigcircuit.evaluation.controls import complement, empty, full, leaves, partly_open, random_circuits
from bigcircuit.evaluation.minimality import minimality, worth_testing
from bigcircuit.evaluation.result import (
    LOW_IS_GOOD,
    Drawn,
    Minimality,
    Point,
    RandomCircuits,
    Scores,
    Split,
    UnderAblation,
)
from bigcircuit.evaluation.scores import ExampleScores, summarise
from bigcircuit.evaluation.settings import EvaluationSettings
from bigcircuit.gates.discretise import Masks
from bigcircuit.gates.granularity import LayerShape
from bigcircuit.tasks.pair import Example

Shapes = Sequence[LayerShape]
_LEARNED_DRAWS = 20
"""Random circuits where each has constants to learn."""


class Held(NamedTuple):
    """Held-out pairs of a task, and what the full model does on them."""

    test: list[Example]
    off: list[Example]
    """Off the distribution: of templates held out; may be empty."""
    full: ExampleScores
    """On the test pairs, then on the others; P = 1."""

    def on(self, scores: ExampleScores, part: str) -> ExampleScores:
        """The scores on one of the two splits."""
        columns = slice(0, len(self.test)) if part == "test" else slice(len(self.test), None)
        return ExampleScores(*(values[:, columns] for values in scores))


def measure(
    masks: Masks,
    shapes: Shapes,
    bench: Bench,
    held: Held,
    settings: EvaluationSettings,
    *,
    own: Ablation | None = None,
    minimal: bool,
) -> UnderAblation:
    """Score the circuit, its complement, nothing, random circuits and partial ablations in one go, then its minimality.

    own: the constants that the circuit has, where each has its own; what it is compared with learns some. minimal: whether
    minimality is asked for.
    """
    draws = min(settings.draws, _LEARNED_DRAWS) if bench.learned else settings.draws
    random = random_circuits(masks, shapes, draws, settings.seed)
    partial = {} if bench.learned or not settings.partial_draws else _partial(masks, shapes, settings)
    three = [leaves(masks), complement(masks, shapes), empty(masks)]
    flat = [*three, *random, *(one for drawn in partial.values() for one in drawn)]
    scores = bench([*held.test, *held.off], flat, [own])
    test, whole = held.on(scores, "test"), held.on(held.full, "test")
    circuit, without, nothing = (summarise(test, whole, index) for index in range(3))
    after = 3 + draws
    return UnderAblation(
        circuit,
        without,
        nothing,
        _random(masks, random, test, whole, range(3, after)) if random else None,
        _points(partial, test, after),
        _minimality(masks, shapes, bench, held, test.kl[0], settings) if minimal and not bench.learned else {},
        _off(held, scores),
    )


def _off(held: Held, scores: ExampleScores) -> Split | None:
    if not held.off:
        return None
    off, whole = held.on(scores, "off"), held.on(held.full, "off")
    return Split(len(held.off), *(summarise(off, whole, index) for index in range(3)))


def _random(
    masks: Masks, drawn: Sequence[Masks], test: ExampleScores, whole: ExampleScores, rows: range
) -> RandomCircuits:
    own = leaves(masks)
    distinct = any(not torch.equal(one[name], own[name]) for one in drawn for name in own)
    found = {}
    for name, values in _means(test, whole).items():
        others, mine = values[rows.start : rows.stop], values[0]
        better = int(((others <= mine) if name in LOW_IS_GOOD else (others >= mine)).sum())
        tails = np.quantile(others, (0.0, 0.05, 0.95, 1.0))
        found[name] = Drawn(
            float(others.mean()),
            float(others.std(ddof=1)) if len(others) > 1 else 0.0,
            *map(float, tails),
            better,
            (better + 1) / (len(others) + 1),
        )
    return RandomCircuits(len(drawn), found, distinct)


def _means(scores: ExampleScores, whole: ExampleScores) -> dict[str, np.ndarray]:
    """Mean over pairs of every score of every circuit, [P]."""
    means = {name: getattr(scores, name).double().mean(1).numpy() for name in scores._fields}
    return means | {"recovered": means["logit_difference"] / whole.logit_difference[0].double().mean().item()}


def _partial(masks: Masks, shapes: Shapes, settings: EvaluationSettings) -> dict[float, list[Masks]]:
    """Circuits by the share of the complement that is open; the ends need no draws."""
    inner = sorted(fraction for fraction in settings.fractions if 0 < fraction < 1)
    drawn = {f: partly_open(masks, shapes, f, settings.partial_draws, settings.seed) for f in inner}
    return {0.0: [leaves(masks)], **drawn, 1.0: [full(masks, shapes)]}


def _points(partial: Mapping[float, Sequence[Masks]], test: ExampleScores, start: int) -> list[Point]:
    points = []
    for fraction, drawn in partial.items():
        rows = slice(start, start + len(drawn))
        start += len(drawn)
        kl = test.kl[rows].double().mean(1)
        points.append(
            Point(
                fraction,
                int(drawn[0]["attention_neuron"].sum() + drawn[0]["mlp_neuron"].sum()),
                len(drawn),
                float(kl.mean()),
                float(kl.max()),
                float(test.logit_difference[rows].double().mean()),
                float(test.exact_match[rows].double().mean()),
            )
        )
    return points


def _minimality(
    masks: Masks, shapes: Shapes, bench: Bench, held: Held, kl: Tensor, settings: EvaluationSettings
) -> dict[str, Minimality]:
    if not settings.groups:
        return {}
    whole = held.on(held.full, "test")

    def score(circuits: Sequence[Masks]) -> ExampleScores:
        return bench(held.test, circuits)

    def summary(scores: ExampleScores) -> Scores:
        return summarise(scores, whole, 0)

    return {
        name: minimality(masks, name, shapes, kl, score, summary, settings.groups, settings.tolerance)
        for name in worth_testing(masks, shapes)
    }
