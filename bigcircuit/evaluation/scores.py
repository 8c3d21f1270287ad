"""Score circuits on held-out pairs: per example first, then means with bootstrap intervals.

Shapes: P circuits, N examples.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bigcircuit.evaluation.bootstrap import Estimate, estimate
from bigcircuit.gates.discretise import site_masks
from bigcircuit.objective import contrast, exact_match, kl_divergence
from bigcircuit.streams import MaskSource, Streams
from bigcircuit.tasks.batch import Batch
from bigcircuit.tasks.pair import Example
from bigcircuit.tasks.passes import Passes


class ExampleScores(NamedTuple):
    """Scores of P circuits on N examples, each float32 [P, N]."""

    kl: Tensor
    """KL(reference || circuit), nats, mean over the answer positions."""
    logit_difference: Tensor
    probability_difference: Tensor
    accuracy: Tensor
    """1 where a right answer is more probable than every wrong one together."""
    exact_match: Tensor
    """1 where the circuit predicts the tokens that the full model predicts."""


def mask_source(circuits: Sequence[Mapping[str, Tensor]], streams: Streams) -> MaskSource:
    """Effective masks of P circuits (granularity -> bool [L, n]) for a pass, [P, 1, n] by site."""
    device = streams.frozen.device

    def source(index: int) -> dict[str, Tensor]:
        folded = [site_masks(masks, index, streams.frozen.shapes[index]) for masks in circuits]
        return {site: torch.stack([f[site] for f in folded]).unsqueeze(1).to(device) for site in folded[0]}

    return source


@torch.no_grad()
def score(
    streams: Streams,
    examples: Sequence[Example],
    circuits: Sequence[Mapping[str, Tensor]] | None,
    passes: Passes,
) -> ExampleScores:
    """Scores of P circuits, or with None of the full model itself (P = 1), in the order of `examples`, on CPU.

    The ranks divide the work and all get all scores.
    """
    source = None if circuits is None else mask_source(circuits, streams)
    found = torch.zeros(len(ExampleScores._fields), len(circuits or [None]), len(examples))
    place = {example.id: index for index, example in enumerate(examples)}
    for piece in passes.over(examples, full=True):
        passes.ranks.stop_if_asked()
        reference = streams.reference(piece.batch)
        logits = reference.unsqueeze(0) if source is None else streams.masked(piece.batch, source, len(circuits or ()))
        if piece.counts:
            scores = score_logits(reference, logits, piece.batch)
            found[:, :, [place[example.id] for example in piece.examples]] = torch.stack(scores).cpu()
    passes.ranks.sum_([found])
    return ExampleScores(*found)


def score_logits(reference: Tensor, logits: Tensor, batch: Batch) -> ExampleScores:
    """Scores from logits at the scored positions: reference [S, V], circuits [P, S, V]."""
    right_wrong = contrast(logits, batch)
    return ExampleScores(
        kl_divergence(reference, logits, batch),
        right_wrong.logit_difference,
        right_wrong.probability_difference,
        (right_wrong.logit_difference > 0).float(),
        exact_match(reference, logits, batch).float(),
    )


def summarise(scores: ExampleScores, full: ExampleScores, member: int) -> dict[str, Estimate]:
    """Means of one circuit with bootstrap intervals; `recovered` is its mean logit difference over the full model's."""
    values = {name: getattr(scores, name)[member].double().numpy() for name in ExampleScores._fields}
    estimates = {name: estimate([column], np.mean) for name, column in values.items()}
    whole = full.logit_difference[0].double().numpy()
    estimates["recovered"] = estimate([values["logit_difference"], whole], _ratio)
    return estimates


def _ratio(part: np.ndarray, whole: np.ndarray, axis: int) -> np.ndarray:
    return part.mean(axis) / whole.mean(axis)
