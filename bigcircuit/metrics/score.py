"""Score circuits on held-out pairs: per example first, then means with bootstrap intervals.

Shapes: P circuits, N examples.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bigcircuit.data.collate import Batch
from bigcircuit.data.micro_batches import MicroBatch, MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.forward.streams import MaskSource, Streams
from bigcircuit.gates.discretise import site_masks
from bigcircuit.metrics.bootstrap import Intervals, intervals
from bigcircuit.metrics.logit_metrics import contrast, exact_match, kl_divergence
from bigcircuit.metrics.mib import faithfulness
from bigcircuit.metrics.registry import Score, Scores


class ExampleScores(NamedTuple):
    """Scores of P circuits on N examples, each float32 [P, N]."""

    kl: Tensor
    """KL(reference || circuit), nats, mean over the answer positions."""
    cross_entropy: Tensor
    """- log p(any right answer), nats."""
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
    passes: MicroBatches,
    at_once: int | None = None,
    references: Callable[[MicroBatch], Tensor] | None = None,
    *,
    full: bool = False,
) -> ExampleScores:
    """Scores of P circuits, or with None of the full model itself (P = 1), in the order of `examples`, on CPU.

    at_once: circuits that share a pass, all of them by default. references: logits [S, V] to compare with, instead of
    those of the full model, which are computed once a piece. full: the full model is one row more, the last, at no cost. The
    ranks divide the work and all get all scores.
    """
    full = full or circuits is None
    found = torch.zeros(len(ExampleScores._fields), len(circuits or ()) + full, len(examples))
    place = {example.id: index for index, example in enumerate(examples)}
    chunks = _chunks(circuits or (), at_once or len(circuits or ()))
    for piece in passes.over(examples, full=True):
        passes.ranks.stop_if_asked()
        reference = streams.reference(piece.batch) if references is None else references(piece)
        columns = [place[example.id] for example in piece.examples]
        if full:
            _keep(found, slice(-1, None), columns, reference, reference.unsqueeze(0), piece)
        for rows, chunk in chunks:
            with streams.under(streams.ablation.of([*range(rows.start, rows.stop)])):
                logits = streams.masked(piece.batch, mask_source(chunk, streams), len(chunk))
            _keep(found, rows, columns, reference, logits, piece)
    passes.ranks.sum_([found])
    return ExampleScores(*found)


def _chunks(circuits: Sequence[Mapping[str, Tensor]], size: int) -> list[tuple[slice, Sequence[Mapping[str, Tensor]]]]:
    parts = [(start, circuits[start : start + size]) for start in range(0, len(circuits), max(size, 1))]
    return [(slice(start, start + len(part)), part) for start, part in parts]


def _keep(found: Tensor, rows: slice, columns: list[int], reference: Tensor, logits: Tensor, piece: MicroBatch) -> None:
    if piece.counts:
        found[:, rows, columns] = torch.stack(score_logits(reference, logits, piece.batch)).cpu()


def score_logits(reference: Tensor, logits: Tensor, batch: Batch) -> ExampleScores:
    """Scores from logits at the scored positions: reference [S, V], circuits [P, S, V]."""
    right_wrong = contrast(logits, batch)
    return ExampleScores(
        kl_divergence(reference, logits, batch),
        right_wrong.cross_entropy,
        right_wrong.logit_difference,
        right_wrong.probability_difference,
        (right_wrong.logit_difference > 0).float(),
        exact_match(reference, logits, batch).float(),
    )


def summarise(scores: ExampleScores, full: ExampleScores, member: int, empty: Tensor) -> Scores:
    """Means of one circuit with bootstrap intervals and tails.

    `recovered` is its faithfulness: with m the mean logit difference, (m(C) - m(empty)) / (m(full) - m(empty)). empty:
    logit differences of the empty circuit under the same ablation, [N]. Every circuit on the same examples sees the same
    resampled ones.
    """
    names = ExampleScores._fields
    values = np.stack([getattr(scores, name)[member].double().numpy() for name in names])
    tails = np.quantile(values, (0.0, 0.05, 0.95, 1.0), axis=1).T.tolist()
    found = {
        name: Score(*interval, *tail)
        for name, interval, tail in zip(names, _rows(intervals(values)), tails, strict=True)
    }
    (share,) = _rows(recovered(scores.logit_difference[member : member + 1], empty, full))
    return found | {"recovered": Score(*share, None, None, None, None)}


def recovered(difference: Tensor, empty: Tensor, full: ExampleScores) -> Intervals:
    """The share of the logit difference that each of P circuits recovers, [P]. difference: [P, N]; empty: [N]."""
    rows = torch.cat([difference, empty.unsqueeze(0), full.logit_difference[:1]]).double().numpy()
    return intervals(rows, lambda means: faithfulness(means[..., :-2], means[..., -2:-1], means[..., -1:]))


def _rows(found: Intervals) -> list[tuple[float, float, float]]:
    return [(float(mean), float(low), float(high)) for mean, low, high in zip(*found, strict=True)]
