"""Score circuits on pairs: each pair by itself first, then means with bootstrap intervals.

Shapes: P circuits, N examples.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigcircuit.data.collate import Batch
from bigcircuit.data.micro_batches import MicroBatch, MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.forward.finite import check_reference
from bigcircuit.forward.plain_passes import plain_passes
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.bootstrap import intervals
from bigcircuit.metrics.compare import TextComparison, compare_pass, comparison_of
from bigcircuit.metrics.distinct_circuits import DistinctCircuits
from bigcircuit.metrics.logit_metrics import LogitComparison
from bigcircuit.metrics.mib import faithfulness
from bigcircuit.metrics.registry import SCORES, Score, Scores, example_scores


class ExampleScores(dict[str, Tensor]):
    """Scores of P circuits on N examples: name of a score of single pairs -> float32 [P, N], in the order of SCORES.

    On general text the N columns are documents, and `weights` are the tokens that are scored in each, float64 [N]; on pairs None.
    """

    def __init__(
        self, values: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]], weights: Tensor | None = None
    ) -> None:
        super().__init__(values)
        self.weights = weights

    def circuit(self, index: int) -> "ExampleScores":
        """Select one circuit, negative indices from the end; P = 1."""
        return ExampleScores({name: values[index].unsqueeze(0) for name, values in self.items()}, self.weights)

    def examples(self, columns: slice) -> "ExampleScores":
        """Select examples by their places."""
        weights = None if self.weights is None else self.weights[columns]
        return ExampleScores({name: values[:, columns] for name, values in self.items()}, weights)

    def double(self) -> "ExampleScores":
        """Convert the values to float64."""
        return ExampleScores({name: values.double() for name, values in self.items()}, self.weights)

    def means(self) -> dict[str, Tensor]:
        """Average over pairs, or over the tokens of all documents: [P] by name, in the precision of the values."""
        if self.weights is None:
            # Row by row: how a mean over a dimension is rounded may depend on the number of rows.
            return {name: torch.stack([row.mean() for row in values]) for name, values in self.items()}
        shares = self.weights / self.weights.sum()
        return {
            name: torch.stack([(row * shares).sum().to(row.dtype) for row in values]) for name, values in self.items()
        }

    def by_document(self, examples: Sequence[Example]) -> "ExampleScores":
        """Join the windows of each document, weighted by their scored tokens; the columns are those of `examples`."""
        if not examples or not examples[0].is_window:
            return self
        places: dict[int, int] = {}
        owner = torch.tensor([places.setdefault(example.document, len(places)) for example in examples])
        tokens = torch.tensor([len(example.answers[0]) for example in examples], dtype=torch.float64)
        weights = torch.zeros(len(places), dtype=torch.float64).index_add(0, owner, tokens)

        def joined(values: Tensor) -> Tensor:
            sums = torch.zeros(len(values), len(places), dtype=torch.float64).index_add(1, owner, values * tokens)
            return (sums / weights).float()

        return ExampleScores({name: joined(values) for name, values in self.items()}, weights)


@torch.no_grad()
def score(
    streams: Streams,
    examples: Sequence[Example],
    circuits: Sequence[Mapping[str, Tensor]] | None,
    micro_batches: MicroBatches,
    at_once: int | None = None,
    references: Callable[[MicroBatch], Tensor] | None = None,
    *,
    full: bool = False,
    phase: str = "scoring",
) -> ExampleScores:
    """Score P circuits, or with None the full model itself (P = 1), in the order of `examples`; results are on the CPU.

    at_once: number of circuits that share a pass, by default all. references: logits [S, V] of a micro-batch to compare with; by
    default those of the full model, computed once a micro-batch. full: add the full model as the last row, which costs no pass.
    phase: name under which the passes are shown. The ranks divide the work, and each of them returns all scores. Raises
    UserError if the full model's logits are not finite.
    """
    full = full or circuits is None
    kinds = example_scores("text" if examples and examples[0].is_window else "pairs")
    distinct = DistinctCircuits(circuits or (), streams.frozen.shapes, merge=streams.can_share)
    found = torch.zeros(len(kinds), len(distinct) + full, len(examples))
    place = {example.id: index for index, example in enumerate(examples)}
    chunks = distinct.chunks(at_once, streams.frozen.device)
    plain = plain_passes(streams, micro_batches, examples, distinct.sites, full=True, references=references)
    with micro_batches.progress.phase(phase, micro_batches.count(len(examples)) * (len(chunks) or 1)) as passes:
        for micro_batch, reference, corrupted in plain:
            if references is None:
                check_reference(streams.frozen, reference, micro_batch)
            columns = [place[example.id] for example in micro_batch.examples]
            if full:
                whole = comparison_of(streams.frozen, micro_batch.batch, reference.unsqueeze(0), reference)
                _keep(found, slice(-1, None), columns, whole, micro_batch)
            for chunk in chunks:
                with streams.under(streams.ablation.of(chunk.rows)):
                    one = compare_pass(
                        streams, micro_batch.batch, chunk.masks, len(chunk.rows), reference, corrupted, chunk.branches
                    )
                _keep(found, slice(chunk.rows[0], chunk.rows[-1] + 1), columns, one, micro_batch)
                passes.advance()
            if not chunks:
                passes.advance()
    micro_batches.ranks.all_reduce([found])
    found = found[:, [*distinct.places, *range(len(distinct), found.shape[1])]]
    return ExampleScores(zip(kinds, found, strict=True)).by_document(examples)


def _keep(found: Tensor, rows: slice, columns: list[int], compared: Any, micro_batch: MicroBatch) -> None:
    if micro_batch.is_counted:
        found[:, rows, columns] = torch.stack(list(_scores(compared).values())).cpu()


def _scores(compared: Any) -> ExampleScores:
    """Compute all scores of single pairs or windows of a comparison."""
    kinds = example_scores("text" if isinstance(compared, TextComparison) else "pairs")
    return ExampleScores({name: kind.compute(compared) for name, kind in kinds.items() if kind.compute})


def score_logits(reference: Tensor, logits: Tensor, batch: Batch) -> ExampleScores:
    """Compute all scores of single pairs from logits at the scored positions: reference [S, V], circuits [P, S, V]."""
    return _scores(LogitComparison(reference, logits, batch))


def summarise(scores: ExampleScores, full: ExampleScores, index: int, empty: ExampleScores | None = None) -> Scores:
    """Average the scores of circuit `index` over its pairs, with bootstrap intervals and tails; add the shares of SCORES.

    full, empty: the full model and the empty circuit under the same ablation on the same examples, P = 1; without an empty
    circuit shares are counted from 0, which suits the full model itself. All circuits on as many examples see the same resampled
    examples.
    """
    values = np.stack([rows[index].double().numpy() for rows in scores.values()])
    weights = None if scores.weights is None else scores.weights.numpy()
    found = dict(zip(scores, summarise_rows(values, weights), strict=True))
    for name, kind in SCORES.items():
        if kind.exp_of in found and scores.weights is not None:
            found[name] = _exponential(found[kind.exp_of])
        if (of := kind.share_of) in scores:
            zero = torch.zeros_like(full[of][0]) if empty is None else empty[of][0]
            found[name] = _share(scores[of][index], zero, full[of][0], weights)
    return found


def summarise_rows(values: np.ndarray, weights: np.ndarray | None = None) -> list[Score]:
    """Average each row of [K, N] over its N examples, with bootstrap interval and tails.

    weights: of the examples, [N]; the mean is then a ratio of means, and so is that of every resampling.
    """
    if weights is None:
        found = intervals(values)
    else:
        found = intervals(np.vstack([values * weights, weights]), lambda means: means[..., :-1] / means[..., -1:])
    tails = np.quantile(values, (0.0, 0.05, 0.95, 1.0), axis=1).T.tolist()
    return [
        Score(mean=float(mean), low=float(low), high=float(high), min=least, p5=p5, p95=p95, max=most)
        for mean, low, high, (least, p5, p95, most) in zip(*found, tails, strict=True)
    ]


def _exponential(score: Score) -> Score:
    """Raise e to a mean and its interval, which a monotone function keeps; and to the tails."""
    return replace(score, **{part: math.exp(value) for part, value in asdict(score).items() if value is not None})


def _share(circuit: Tensor, empty: Tensor, full: Tensor, weights: np.ndarray | None) -> Score:
    """Share that a circuit recovers of the difference in means between empty circuit and full model, from values [N] each.

    weights: of the examples, [N]."""
    # Where examples weigh differently all three means are divided by the same weight, which cancels.
    rows = torch.stack([circuit, empty, full]).double().numpy() * (1 if weights is None else weights)
    found = intervals(rows, lambda means: faithfulness(means[..., :1], means[..., 1:2], means[..., 2:]))
    mean, low, high = (float(part[0]) for part in found)
    return Score(mean=mean, low=low, high=high, min=None, p5=None, p95=None, max=None)
