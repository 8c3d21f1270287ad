"""Optimal ablation: fit constants to finished masks, for a run at its end or for circuits without constants.

Shapes: P circuits, L layers, S scored positions, V vocabulary, n width of a site in the widest layer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.ablation.kinds import KINDS
from bigcircuit.ablation.learned import ConstantsStart
from bigcircuit.config.schema import Config
from bigcircuit.data.collate import batch_indices
from bigcircuit.data.micro_batches import MicroBatch, MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.forward.reference_logits import Targets
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import Masks
from bigcircuit.metrics.compare import compare_pass
from bigcircuit.metrics.distinct_circuits import mask_source
from bigcircuit.model.granularity import learned_sites
from bigcircuit.train.state import TrainState


def final_ablation(
    config: Config,
    state: TrainState,
    streams: Streams,
    masks: Sequence[Masks],
    train: Targets,
    held_out: Targets,
    micro_batches: MicroBatches,
) -> Ablation:
    """Make the final ablation of a run: where constants are learned, fit those of every member to its finished masks.

    While gates are trained nodes are half open; constants of nodes that are closed for good are others. So they are fitted
    once more, from those that belong to the best gates on, on the pairs of the training, and stay as they were for a member
    whose loss on the validation pairs that does not lower. It depends on nothing but the state, so a resumed run does the same.
    """
    if not KINDS[config.ablation.name].learned:
        return streams.ablation
    steps = config.ablation.finish_steps
    found = [member_state.best.constants for member_state in state.member_states]
    learned = {site: torch.stack([constants[site] for constants in found]) for site in found[0]}
    start = ConstantsStart(learned, state.population.spread)
    if not steps:
        return start.ablation([{}] * len(masks))
    micro_batches.progress.print_line(f"fitting the constants to the finished masks, {steps} steps")
    return optimal_ablation(
        streams,
        masks,
        train,
        micro_batches,
        start,
        held_out=held_out,
        steps=steps,
        batch_size=config.train.batch_size,
        seed=config.task.seed,
        loss=config.task.text.loss,
    )


def optimal_ablation(
    streams: Streams,
    circuits: Sequence[Masks],
    train: Targets,
    micro_batches: MicroBatches,
    start: ConstantsStart,
    *,
    held_out: Targets | None = None,
    steps: int = 200,
    lr: float = 0.05,
    batch_size: int = 32,
    seed: int = 0,
    loss: Literal["kl", "cross_entropy"] = "kl",
) -> Ablation:
    """Fit the constants under which each of P finished circuits is nearest to its target logits, or to a text.

    Adam learns them for all circuits in the same passes, and no circuit's constants depend on the others. A circuit whose loss on
    `held_out`, by default on `train`, was not lowered keeps the constants of the start. lr: of the first step, in the units of
    the start; it falls to 0 as a cosine. batch_size: examples a step. loss: as `task.text.loss`.
    """
    shapes = streams.frozen.shapes
    offsets = [
        {site: torch.zeros_like(start.unit[site]).requires_grad_() for site in learned_sites(shapes, masks)}
        for masks in circuits
    ]
    judge = _Fit(streams, circuits, held_out or train, micro_batches, loss)
    with torch.no_grad():
        before = judge.sums(start.ablation(offsets), "constants at the start")
    optimizer = torch.optim.Adam([offset for own in offsets for offset in own.values()], lr)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    fit, examples = _Fit(streams, circuits, train, micro_batches, loss), train.examples
    with micro_batches.progress.phase("fitting constants", steps, "steps") as updates:
        for step in range(steps):
            order = batch_indices(len(examples), min(batch_size, len(examples)), step, seed)
            found = fit.gradients([examples[index] for index in order], lambda: start.ablation(offsets), offsets)
            optimizer.step()
            decay.step()
            updates.advance(values={loss: found / len(circuits)})
    with torch.no_grad():
        after = judge.sums(start.ablation(offsets), "constants at the end")
        for own, lower in zip(offsets, after < before, strict=True):
            for offset in own.values() if not lower else ():
                offset.zero_()
        return start.ablation(offsets)


class _Fit(NamedTuple):
    """Distance of P circuits with given constants from their targets.

    Ranks divide the work and all get the sums, in float64, so that no float32 bit depends on their order.
    """

    streams: Streams
    circuits: Sequence[Masks]
    targets: Targets
    micro_batches: MicroBatches
    loss: str

    def sums(self, ablation: Ablation, phase: str) -> Tensor:
        """Sum the loss over all examples, float64 [P], nats. phase: see `MicroBatches.iterate`."""
        sums = torch.zeros(len(self.circuits), dtype=torch.float64, device=self.streams.frozen.device)
        for micro_batch in self.micro_batches.iterate(self.targets.examples, full=self.targets.full, phase=phase):
            sums += self._losses(micro_batch, ablation) * micro_batch.is_counted
        self.micro_batches.ranks.all_reduce([sums])
        return sums

    def gradients(
        self,
        examples: Sequence[Example],
        constants: Callable[[], Ablation],
        offsets: Sequence[Mapping[str, Tensor]],
    ) -> float:
        """Set `grad` of all offsets to that of the mean loss of their circuit. Returns the sum of these means, nats."""
        parameters = [offset for own in offsets for offset in own.values()]
        sums = torch.zeros(1 + sum(p.numel() for p in parameters), dtype=torch.float64, device=parameters[0].device)
        for micro_batch in self.micro_batches.iterate(examples, full=self.targets.full, phase="update"):
            loss = self._losses(micro_batch, constants()).sum() / len(examples)
            found = torch.autograd.grad(loss, parameters)
            self.streams.frozen.release_gathered()
            if micro_batch.is_counted:
                sums += torch.cat([loss.detach().reshape(1), *(gradient.reshape(-1) for gradient in found)])
        self.micro_batches.ranks.all_reduce([sums])
        for parameter, total in zip(parameters, sums[1:].split([p.numel() for p in parameters]), strict=True):
            parameter.grad = total.view_as(parameter).float()
        return float(sums[0])

    def _losses(self, micro_batch: MicroBatch, ablation: Ablation) -> Tensor:
        self.micro_batches.ranks.stop_if_requested()
        with self.streams.under(ablation):
            masks, reference = mask_source(self.circuits, self.streams), self.targets.references(micro_batch)
            found = compare_pass(self.streams, micro_batch.batch, masks, len(self.circuits), reference)
        return getattr(found, self.loss).sum(1)
