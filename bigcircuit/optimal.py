"""Optimal ablation of finished circuits: the constants under which each is nearest to the full model (arXiv 2409.09951).

Shapes: P circuits, L layers, S scored positions, V vocabulary, n width of a site in the widest layer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.ablated import Ablation, Moments
from bigcircuit.evaluation.scores import mask_source
from bigcircuit.gates.discretise import Masks
from bigcircuit.gates.granularity import LEAVES, LayerShape
from bigcircuit.objective import kl_divergence
from bigcircuit.streams import Streams
from bigcircuit.tasks.batch import train_order
from bigcircuit.tasks.pair import Example
from bigcircuit.tasks.passes import Passes, Piece

NAME = "optimal"


class Lessons(NamedTuple):
    """Examples and what circuits are to predict on them."""

    examples: Sequence[Example]
    references: Callable[[Piece], Tensor]
    """Logits [S, V] for a pass."""
    full: bool
    """How the passes are collated, see `collate`."""


class Start(NamedTuple):
    """Where learning starts, by site."""

    constants: Mapping[str, Tensor]
    """[P or 1, L, n]"""
    unit: Mapping[str, Tensor]
    """[L, n], in which steps are counted: see Moments.start."""

    @classmethod
    def at_means(cls, found: Moments, shapes: Sequence[LayerShape]) -> "Start":
        """For circuits without constants of their own."""
        starts = {site: found.start(site, shapes) for site in found.mean}
        return cls({s: mean.unsqueeze(0) for s, (mean, _) in starts.items()}, {s: u for s, (_, u) in starts.items()})

    def ablation(self, offsets: Sequence[Mapping[str, Tensor]]) -> Ablation:
        """The constants that lie `offsets` away, for each circuit by site [L, n]; sites without any stay where they are."""
        values = {site: rows.expand(len(offsets), -1, -1) for site, rows in self.constants.items()}
        for site in offsets[0]:
            values[site] = values[site] + self.unit[site] * torch.stack([own[site] for own in offsets])
        return Ablation(NAME, {site: rows.unsqueeze(2) for site, rows in values.items()})


def optimal_ablation(
    streams: Streams,
    circuits: Sequence[Masks],
    train: Lessons,
    passes: Passes,
    start: Start,
    *,
    held_out: Lessons | None = None,
    steps: int = 200,
    lr: float = 0.05,
    batch_size: int = 32,
    seed: int = 0,
    watch: Callable[[int, float], None] = lambda _, __: None,
) -> Ablation:
    """The constants under which each of P finished circuits is nearest to what it is to predict.

    They are learned by Adam, for all circuits in the same passes; no circuit knows of the others. Where that did not lower a
    circuit's KL on `held_out`, by default on `train`, it keeps those of the start. lr: of the first step, in the
    units of the start; it falls to 0 as a cosine. batch_size: examples a step. watch: is told each step and its mean KL, in nats.
    """
    offsets = [
        {s: torch.zeros_like(start.unit[s]).requires_grad_() for s, leaf in LEAVES.items() if leaf in masks}
        for masks in circuits
    ]
    judge = _Fit(streams, circuits, held_out or train, passes)
    with torch.no_grad():
        before = judge.kl(start.ablation(offsets))
    optimizer = torch.optim.Adam([offset for own in offsets for offset in own.values()], lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    fit, examples = _Fit(streams, circuits, train, passes), train.examples
    for step in range(steps):
        order = train_order(len(examples), min(batch_size, len(examples)), step, seed)
        kl = fit.gradients([examples[index] for index in order], lambda: start.ablation(offsets), offsets)
        watch(step + 1, kl / len(circuits))
        optimizer.step()
        decay.step()
    with torch.no_grad():
        after = judge.kl(start.ablation(offsets))
        for own, lower in zip(offsets, after < before, strict=True):
            for offset in own.values() if not lower else ():
                offset.zero_()
        return start.ablation(offsets)


class _Fit(NamedTuple):
    """How far P circuits with given constants are from what they are to predict. The ranks divide the work and all get the
    sums, which are float64, so that their order does not show in float32."""

    streams: Streams
    circuits: Sequence[Masks]
    lessons: Lessons
    passes: Passes

    def kl(self, ablation: Ablation) -> Tensor:
        """Summed over all examples, float64 [P], nats."""
        sums = torch.zeros(len(self.circuits), dtype=torch.float64, device=self.streams.frozen.device)
        for piece in self.passes.over(self.lessons.examples, full=self.lessons.full):
            sums += self._kl(piece, ablation) * piece.counts
        self.passes.ranks.sum_([sums])
        return sums

    def gradients(
        self,
        examples: Sequence[Example],
        constants: Callable[[], Ablation],
        offsets: Sequence[Mapping[str, Tensor]],
    ) -> float:
        """Set `grad` of all offsets to that of the mean KL of their circuit; returns the sum of these means, nats."""
        parameters = [offset for own in offsets for offset in own.values()]
        sums = torch.zeros(1 + sum(p.numel() for p in parameters), dtype=torch.float64, device=parameters[0].device)
        for piece in self.passes.over(examples, full=self.lessons.full):
            kl = self._kl(piece, constants()).sum() / len(examples)
            found = torch.autograd.grad(kl, parameters)
            self.streams.frozen.settle()
            if piece.counts:
                sums += torch.cat([kl.detach().reshape(1), *(gradient.reshape(-1) for gradient in found)])
        self.passes.ranks.sum_([sums])
        for parameter, total in zip(parameters, sums[1:].split([p.numel() for p in parameters]), strict=True):
            parameter.grad = total.view_as(parameter).float()
        return float(sums[0])

    def _kl(self, piece: Piece, ablation: Ablation) -> Tensor:
        self.passes.ranks.stop_if_asked()
        with self.streams.under(ablation):
            logits = self.streams.masked(piece.batch, mask_source(self.circuits, self.streams), len(self.circuits))
        return kl_divergence(self.lessons.references(piece), logits, piece.batch).sum(1)
