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
from bigcircuit.tasks.batch import batches
from bigcircuit.tasks.pair import Example


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
    *,
    batch_size: int,
    padding: str = "right",
) -> ExampleScores:
    """Scores of P circuits, or with None of the full model itself (P = 1), in the order of `examples`."""
    device = streams.frozen.device
    source = None if circuits is None else mask_source(circuits, streams)
    parts: list[ExampleScores] = []
    ids: list[Tensor] = []
    for batch in batches(examples, batch_size, full=True, padding=padding, device=device):
        reference = streams.reference(batch)
        logits = reference.unsqueeze(0) if source is None else streams.masked(batch, source, len(circuits))
        right_wrong = contrast(logits, batch)
        parts.append(
            ExampleScores(
                kl_divergence(reference, logits, batch),
                right_wrong.logit_difference,
                right_wrong.probability_difference,
                (right_wrong.logit_difference > 0).float(),
                exact_match(reference, logits, batch).float(),
            )
        )
        ids.append(batch.ids)
    place = {example.id: index for index, example in enumerate(examples)}
    order = torch.argsort(torch.tensor([place[i] for i in torch.cat(ids).tolist()]))
    return ExampleScores(*(torch.cat(columns, dim=1).cpu()[:, order] for columns in zip(*parts, strict=True)))


def summarise(scores: ExampleScores, full: ExampleScores, member: int) -> dict[str, Estimate]:
    """Means of one circuit with bootstrap intervals; `recovered` is its mean logit difference over the full model's."""
    values = {name: getattr(scores, name)[member].double().numpy() for name in ExampleScores._fields}
    estimates = {name: estimate([column], np.mean) for name, column in values.items()}
    whole = full.logit_difference[0].double().numpy()
    estimates["recovered"] = estimate([values["logit_difference"], whole], _ratio)
    return estimates


def _ratio(part: np.ndarray, whole: np.ndarray, axis: int) -> np.ndarray:
    return part.mean(axis) / whole.mean(axis)
