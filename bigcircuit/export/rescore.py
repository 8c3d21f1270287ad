"""Score a circuit under the ablation that it was found under and under the one that is frozen into weights."""

from typing import NamedTuple

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.circuit.controls import empty
from bigcircuit.evaluation.open_circuits import LoadedCircuit
from bigcircuit.evaluation.plan import EvaluationPlan
from bigcircuit.evaluation.runner import score_full_model
from bigcircuit.evaluation.scorer import ConstantFitter, Scorer, ScoringContext, make_scorer
from bigcircuit.gates.discretise import Masks
from bigcircuit.metrics.registry import Scores
from bigcircuit.metrics.score import summarise
from bigcircuit.model.sites import FrozenModel


class ScoredAs(NamedTuple):
    """Scores of a circuit on the held-out pairs of its task."""

    what: str
    """Which circuit under which ablation, in words."""
    scores: Scores


class Rescored(NamedTuple):
    """An ablation that weights can hold, and what freezing costs."""

    ablation: Ablation
    rows: list[ScoredAs]


def rescore(plan: EvaluationPlan, frozen: FrozenModel, ablation: str, written: Masks) -> Rescored:
    """Measure or fit the constants of an ablation, and score the circuit as it was found and as it is written.

    plan: of one circuit under both ablations; written: the masks that are exported.
    """
    [loaded] = plan.circuits
    task = score_full_model(plan, plan.task_of(loaded), frozen)
    context = ScoringContext(
        frozen=frozen,
        train=task.data.splits["train"],
        micro_batches=plan.micro_batches,
        at_once=plan.settings.at_once,
    )
    full, rows = task.held_out.on(task.held_out.full, "test"), []
    found = dict(loaded.circuit.masks)
    frozen_as: Ablation | None = None
    for name, masks in ((loaded.found_under, found), (ablation, written)):
        scorer = _scorer(plan, loaded, name, context, masks)
        scores = scorer(task.held_out.test, [masks, empty(masks)], [], phase=f"scoring under {name} ablation")
        closed = "" if masks is found or _same(masks, found) else ", within the limits"
        rows.append(ScoredAs(f"{name} ablation{closed}", summarise(scores, full, 0, scores.circuit(-1))))
        frozen_as = scorer.ablation
    assert frozen_as is not None
    return Rescored(
        frozen_as, rows if loaded.found_under != ablation or len(rows[1].what) > len(rows[0].what) else rows[:1]
    )


def _scorer(plan: EvaluationPlan, loaded: LoadedCircuit, name: str, context: ScoringContext, masks: Masks) -> Scorer:
    """Make the scorer of an ablation whose constants are those of the circuit, fitted to it where it has none."""
    constants = plan.constants[loaded.name, name]
    scorer = make_scorer(name, context, constants)
    if isinstance(scorer.constants, ConstantFitter):
        return scorer.with_constants(constants.saved or scorer.constants([masks]))
    return scorer


def _same(one: Masks, other: Masks) -> bool:
    return all(bool((one[name] == other[name]).all()) for name in one)
