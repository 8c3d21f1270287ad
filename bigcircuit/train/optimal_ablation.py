"""The constants of a finished run under optimal ablation: learned with the gates, and once more for the finished masks."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.ablation.learned import ConstantsStart
from bigcircuit.config.schema import Config
from bigcircuit.data.collate import train_order
from bigcircuit.data.micro_batches import MicroBatch, MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.forward.reference_logits import Targets
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import Masks
from bigcircuit.metrics.logit_metrics import kl_divergence
from bigcircuit.metrics.score import mask_source
from bigcircuit.model.granularity import LEAVES
from bigcircuit.runtime.progress import ProgressDisplay
from bigcircuit.train.state import TrainState


def final_ablation(
    config: Config,
    state: TrainState,
    streams: Streams,
    masks: Sequence[Masks],
    train: Targets,
    held_out: Targets,
    passes: MicroBatches,
    display: ProgressDisplay,
) -> Ablation:
    """The ablation of the run; where constants are learned, with those of every member's finished masks.

    While gates are trained nodes are half open; constants of nodes that are closed for good are others. So they are fitted
    once more, from those that belong to the best gates on, on the pairs of the training, and stay as they were for a member
    whose KL on the validation pairs that does not lower. It depends on nothing but the state, so a resumed run does the same.
    """
    if config.ablation.kind != NAME:
        return streams.ablation
    steps = config.ablation.finish_steps
    found = [learner.best.constants for learner in state.learners]
    learned = {site: torch.stack([constants[site] for constants in found]) for site in found[0]}
    start = ConstantsStart(learned, state.population.spread)
    if not steps:
        return start.ablation([{}] * len(masks))
    display.say(f"fitting the constants to the finished masks, {steps} steps")
    with display.training(steps, 0):
        return optimal_ablation(
            streams,
            masks,
            train,
            passes,
            start,
            held_out=held_out,
            steps=steps,
            batch_size=config.train.batch_size,
            seed=config.task.seed,
            watch=lambda step, kl: display.step(step, {"kl": kl}),
        )


NAME = "optimal"


def optimal_ablation(
    streams: Streams,
    circuits: Sequence[Masks],
    train: Targets,
    passes: MicroBatches,
    start: ConstantsStart,
    *,
    held_out: Targets | None = None,
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
    lessons: Targets
    passes: MicroBatches

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

    def _kl(self, piece: MicroBatch, ablation: Ablation) -> Tensor:
        self.passes.ranks.stop_if_asked()
        with self.streams.under(ablation):
            logits = self.streams.masked(piece.batch, mask_source(self.circuits, self.streams), len(self.circuits))
        return kl_divergence(self.lessons.references(piece), logits, piece.batch).sum(1)
