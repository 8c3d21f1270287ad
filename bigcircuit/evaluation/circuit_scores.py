"""Score one circuit under one ablation: by itself, without it, and beside random circuits and partly open complements."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.circuit.controls import complement, empty, full, partly_open, random_circuits
from bigcircuit.circuit.masks import leaves
from bigcircuit.data.pair import Example
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.minimality import MinimalityTest, minimality, worth_testing
from bigcircuit.evaluation.scorer import Scorer
from bigcircuit.gates.discretise import Masks
from bigcircuit.metrics.bootstrap import intervals
from bigcircuit.metrics.mib import faithfulness
from bigcircuit.metrics.registry import SCORES, Scores, match_of, preference_of
from bigcircuit.metrics.score import ExampleScores, summarise
from bigcircuit.model.granularity import LayerShape, count_total
from bigcircuit.results.evaluation import Drawn, Means, Minimality, Point, RandomCircuits, Split, UnderAblation

_LEARNED_DRAWS = 20
"""Most random circuits where each of them has to learn constants."""
_CIRCUIT, _COMPLEMENT, _EMPTY = range(3)
"""The first rows of all scores; random and partly open circuits follow."""


class HeldOut(NamedTuple):
    """Held-out pairs of a task, and the scores of the full model on them."""

    test: list[Example]
    off: list[Example]
    """Off the distribution: pairs of held-out templates; may be empty."""
    full: ExampleScores
    """On the test pairs, then on the pairs off the distribution; P = 1."""

    def on(self, scores: ExampleScores, part: str) -> ExampleScores:
        """Select the scores on one of the two splits. part: `test` or `off`."""
        columns = slice(0, len(self.test)) if part == "test" else slice(len(self.test), None)
        return scores.examples(columns)


def circuit_scores(
    masks: Masks,
    shapes: Sequence[LayerShape],
    scorer: Scorer,
    held: HeldOut,
    settings: EvaluationSettings,
    *,
    own: Ablation | None = None,
    minimal: bool,
    means: Means | None = None,
    print_line: Callable[[str], None] = lambda _: None,
) -> UnderAblation:
    """Score the circuit, its complement, the empty circuit, random circuits and partial ablations together, then its minimality.

    own: constants of the circuit, where each circuit has its own; parts of the circuit keep them, circuits that it is compared
    with learn others. minimal: whether to measure minimality. means: what constants are means over. print_line: prints a line
    of progress.
    """
    draws = min(settings.draws, _LEARNED_DRAWS) if scorer.fits_constants else settings.draws
    random = random_circuits(masks, shapes, draws, settings.seed)
    partial = {} if scorer.fits_constants or not settings.partial_draws else _partial(masks, shapes, settings)
    fixed = scorer if own is None else scorer.with_constants(own)
    compared = [leaves(masks), complement(masks, shapes), empty(masks)]
    circuits = [*compared, *random, *(one for drawn in partial.values() for one in drawn)]
    print_line(
        f"  {len(circuits)} circuits on {len(held.test) + len(held.off)} pairs: itself, without it, nothing, {draws} random"
    )
    scores = scorer([*held.test, *held.off], circuits, [own])
    test, whole = held.on(scores, "test"), held.on(held.full, "test")
    after = len(compared) + draws
    return UnderAblation(
        means=means,
        **_compared(test, whole),
        random=_random(masks, random, test, whole, slice(len(compared), after)) if random else None,
        partial=_points(partial, test, after),
        minimality=_minimality(masks, shapes, fixed, held, test, settings, print_line)
        if minimal and not fixed.fits_constants
        else {},
        off_distribution=_off(held, scores),
    )


def _compared(scores: ExampleScores, whole: ExampleScores) -> dict[str, Scores]:
    """Summarise the circuit, its complement and the empty circuit, by their names in evaluation.json."""
    rows = {"circuit": _CIRCUIT, "complement": _COMPLEMENT, "empty": _EMPTY}
    return {name: summarise(scores, whole, row, scores.circuit(_EMPTY)) for name, row in rows.items()}


def _off(held: HeldOut, scores: ExampleScores) -> Split | None:
    if not held.off:
        return None
    return Split(pairs=len(held.off), **_compared(held.on(scores, "off"), held.on(held.full, "off")))


def _random(
    masks: Masks, drawn: Sequence[Masks], test: ExampleScores, whole: ExampleScores, rows: slice
) -> RandomCircuits:
    """Compare the circuit with the random circuits in some rows of the scores."""
    own = leaves(masks)
    return RandomCircuits(
        draws=len(drawn),
        scores={
            name: _distribution(values[rows], values[_CIRCUIT], SCORES[name].lower_is_better)
            for name, values in _means(test, whole).items()
        },
        distinct=any(not torch.equal(one[name], own[name]) for one in drawn for name in own),
    )


def _distribution(others: np.ndarray, mine: float, lower_is_better: bool) -> Drawn:
    """Describe the means of random circuits, [D], and how many are at least as good as the circuit's."""
    better = int(((others <= mine) if lower_is_better else (others >= mine)).sum())
    least, p5, p95, most = np.quantile(others, (0.0, 0.05, 0.95, 1.0)).tolist()
    return Drawn(
        mean=float(others.mean()),
        sd=float(others.std(ddof=1)) if len(others) > 1 else 0.0,
        min=least,
        p5=p5,
        p95=p95,
        max=most,
        better=better,
        p=(better + 1) / (len(others) + 1),
    )


def _means(scores: ExampleScores, whole: ExampleScores) -> dict[str, np.ndarray]:
    """Average every score of every circuit over pairs, [P]; with the shares of SCORES."""
    means, full = ({name: mean.numpy() for name, mean in one.double().means().items()} for one in (scores, whole))
    for name, kind in SCORES.items():
        if (of := kind.share_of) in scores:
            means[name] = faithfulness(means[of], means[of][_EMPTY], full[of][0])
    return means


def _partial(masks: Masks, shapes: Sequence[LayerShape], settings: EvaluationSettings) -> dict[float, list[Masks]]:
    """Draw circuits by the share of the complement that is open; both ends need no draws."""
    inner = sorted(fraction for fraction in settings.fractions if 0 < fraction < 1)
    drawn = {f: partly_open(masks, shapes, f, settings.partial_draws, settings.seed) for f in inner}
    return {0.0: [leaves(masks)], **drawn, 1.0: [full(masks, shapes)]}


def _points(partial: Mapping[float, Sequence[Masks]], test: ExampleScores, start: int) -> list[Point]:
    """Summarise the draws of each share, whose scores follow one another from row `start` on."""
    points = []
    for fraction, drawn in partial.items():
        rows = slice(start, start + len(drawn))
        start += len(drawn)
        each = test["kl"][rows].double()
        (mean,), (low,), (high,) = intervals(each.mean(0, keepdim=True).numpy())
        points.append(
            Point(
                fraction=fraction,
                neurons=count_total({name: int(mask.sum()) for name, mask in drawn[0].items()}),
                draws=len(drawn),
                kl=float(mean),
                kl_low=float(low),
                kl_high=float(high),
                kl_max=float(each.mean(1).max()),
                logit_difference=float(test[preference_of(test)][rows].double().mean()),
                exact_match=float(test[match_of(test)][rows].double().mean()),
            )
        )
    return points


def _minimality(
    masks: Masks,
    shapes: Sequence[LayerShape],
    scorer: Scorer,
    held: HeldOut,
    test: ExampleScores,
    settings: EvaluationSettings,
    print_line: Callable[[str], None],
) -> dict[str, Minimality]:
    """Measure minimality at every granularity worth testing."""
    if not settings.groups:
        return {}
    whole = held.on(held.full, "test")

    def score(circuits: Sequence[Masks]) -> ExampleScores:
        print_line(f"  minimality: {len(circuits)} circuits")
        return scorer(held.test, circuits, phase="minimality")

    def summary(scores: ExampleScores) -> Scores:
        return summarise(scores, whole, 0, test.circuit(_EMPTY))

    without_nodes = MinimalityTest(
        masks=masks,
        shapes=shapes,
        baseline=test,
        score=score,
        summarise=summary,
        limit=settings.groups,
        tolerance=settings.tolerance,
    )
    return {name: minimality(without_nodes, name) for name in worth_testing(masks, shapes)}
