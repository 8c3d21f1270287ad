"""All scores of one circuit under one ablation: with itself, without it, and beside what chance and other sizes do."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.circuit.controls import complement, empty, full, leaves, partly_open, random_circuits
from bigcircuit.data.pair import Example
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.minimality import minimality, worth_testing
from bigcircuit.evaluation.scorer import Scorer
from bigcircuit.gates.discretise import Masks
from bigcircuit.metrics.bootstrap import intervals
from bigcircuit.metrics.mib import faithfulness
from bigcircuit.metrics.registry import LOW_IS_GOOD, Scores
from bigcircuit.metrics.score import ExampleScores, summarise
from bigcircuit.model.granularity import LayerShape
from bigcircuit.results.evaluation import Drawn, Means, Minimality, Point, RandomCircuits, Split, UnderAblation

Shapes = Sequence[LayerShape]
_LEARNED_DRAWS = 20
"""Random circuits where each has constants to learn."""


class HeldOut(NamedTuple):
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


def circuit_scores(
    masks: Masks,
    shapes: Shapes,
    bench: Scorer,
    held: HeldOut,
    settings: EvaluationSettings,
    *,
    own: Ablation | None = None,
    minimal: bool,
    means: Means | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> UnderAblation:
    """Score the circuit, its complement, nothing, random circuits and partial ablations in one go, then its minimality.

    own: the constants that the circuit has, where each has its own; what it is compared with learns some, and parts of the
    circuit keep its. minimal: whether minimality is asked for. means: what constants are over. say: is told
    what comes next.
    """
    draws = min(settings.draws, _LEARNED_DRAWS) if bench.learned else settings.draws
    random = random_circuits(masks, shapes, draws, settings.seed)
    partial = {} if bench.learned or not settings.partial_draws else _partial(masks, shapes, settings)
    fixed = bench if own is None else replace(bench, ablation=own, teacher=None)
    three = [leaves(masks), complement(masks, shapes), empty(masks)]
    flat = [*three, *random, *(one for drawn in partial.values() for one in drawn)]
    say(
        f"  {len(flat)} circuits on {len(held.test) + len(held.off)} pairs: itself, without it, nothing, {draws} random"
    )
    scores = bench([*held.test, *held.off], flat, [own])
    test, whole = held.on(scores, "test"), held.on(held.full, "test")
    after = 3 + draws
    return UnderAblation(
        means,
        *_three(test, whole),
        _random(masks, random, test, whole, range(3, after)) if random else None,
        _points(partial, test, after),
        _minimality(masks, shapes, fixed, held, test, settings, say) if minimal and not fixed.learned else {},
        _off(held, scores),
    )


def _three(scores: ExampleScores, whole: ExampleScores) -> list[Scores]:
    """The circuit, its complement and nothing, which are the first three rows."""
    return [summarise(scores, whole, index, scores.logit_difference[2]) for index in range(3)]


def _off(held: HeldOut, scores: ExampleScores) -> Split | None:
    if not held.off:
        return None
    off, whole = held.on(scores, "off"), held.on(held.full, "off")
    return Split(len(held.off), *_three(off, whole))


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
    difference, full = means["logit_difference"], whole.logit_difference[0].double().mean().item()
    return means | {"recovered": faithfulness(difference, difference[2], full)}


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
        each = test.kl[rows].double()
        kl, ((mean,), (low,), (high,)) = each.mean(1), intervals(each.mean(0, keepdim=True).numpy())
        points.append(
            Point(
                fraction,
                int(drawn[0]["attention_neuron"].sum() + drawn[0]["mlp_neuron"].sum()),
                len(drawn),
                float(mean),
                float(low),
                float(high),
                float(kl.max()),
                float(test.logit_difference[rows].double().mean()),
                float(test.exact_match[rows].double().mean()),
            )
        )
    return points


def _minimality(
    masks: Masks,
    shapes: Shapes,
    bench: Scorer,
    held: HeldOut,
    test: ExampleScores,
    settings: EvaluationSettings,
    say: Callable[[str], None],
) -> dict[str, Minimality]:
    if not settings.groups:
        return {}
    whole = held.on(held.full, "test")

    def score(circuits: Sequence[Masks]) -> ExampleScores:
        say(f"  minimality: {len(circuits)} circuits")
        return bench(held.test, circuits)

    def summary(scores: ExampleScores) -> Scores:
        return summarise(scores, whole, 0, test.logit_difference[2])

    return {
        name: minimality(masks, name, shapes, test, score, summary, settings.groups, settings.tolerance)
        for name in worth_testing(masks, shapes)
    }
