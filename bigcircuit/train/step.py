"""One update of a population, and the validation that chooses its best gates.

Shapes: P members, B examples, S scored positions, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.config.schema import Config
from bigcircuit.data.micro_batches import MicroBatch, MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.errors import DivergedError
from bigcircuit.forward.reference_logits import ReferenceLogits, Targets
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import count, discretise
from bigcircuit.gates.schedules import learning_rate
from bigcircuit.metrics.logit_metrics import contrast, kl_divergence
from bigcircuit.metrics.score import score
from bigcircuit.train.penalty import fixed_terms, total
from bigcircuit.train.state import Best, TrainState


class Sums(NamedTuple):
    """Faithfulness summed over examples and ranks. Float64, so that the order of the sum does not show in float32."""

    gradient: Tensor
    """float64 [all gates and learned constants of all members in order]"""
    kl: Tensor
    """float64 [P], nats; the mean over the batch."""
    hinge: Tensor
    """float64 [P]"""


def faithfulness(
    state: TrainState,
    streams: Streams,
    references: Callable[[MicroBatch], Tensor],
    chosen: Sequence[Example],
    passes: MicroBatches,
) -> Sums:
    """How far every member, under fresh gate noise, is from the full model on a global batch, and the gradient of it."""
    population, parameters = state.population, state.parameters
    sums = Sums(*(torch.zeros(n, dtype=torch.float64, device=passes.ranks.device)
                  for n in (sum(p.numel() for p in parameters), len(population), len(population))))  # fmt: skip
    for piece in passes.over(chosen, full=False):
        kl, hinge = _terms(state, streams, references, piece)
        weights = torch.tensor(
            [[m.config.train.kl, m.config.train.hinge] for m in population.members], device=kl.device
        )
        loss = (weights[:, 0] * kl + weights[:, 1] * hinge).sum() / len(chosen)
        gradient = torch.autograd.grad(loss, parameters)
        streams.frozen.settle()
        if piece.counts:
            sums.gradient.add_(torch.cat([g.reshape(-1) for g in gradient]))
            sums.kl.add_(kl.detach() / len(chosen))
            sums.hinge.add_(hinge.detach() / len(chosen))
    passes.ranks.sum_(sums)
    return sums


def _terms(
    state: TrainState, streams: Streams, references: Callable[[MicroBatch], Tensor], piece: MicroBatch
) -> tuple[Tensor, Tensor]:
    """KL and hinge of every member summed over the examples of one pass, float32 [P] each, with graphs to all parameters."""
    population = state.population
    masks = population.draw([example.id for example in piece.examples])
    with streams.under(population.learned()):
        logits = streams.masked(piece.batch, masks, len(population))
    kl = kl_divergence(references(piece), logits, piece.batch).sum(1)
    configs = [member.config for member in population.members]
    if not any(config.train.hinge for config in configs):
        return kl, torch.zeros_like(kl)
    margins = torch.tensor([config.train.margin for config in configs], device=kl.device).unsqueeze(1)
    return kl, (margins - contrast(logits, piece.batch).logit_difference).clamp(min=0).sum(1)


class Price(NamedTuple):
    """What the members pay for their size; the same on every rank."""

    gradient: Tensor
    """float32, laid out as Sums.gradient."""
    penalty: Tensor
    """float32 [P]"""
    expected: dict[str, Tensor]
    """Expected open nodes by granularity and as `total`, float32 [P]."""


def price(state: TrainState) -> Price:
    """The price of the expected sizes and its gradient."""
    population = state.population
    expected = population.expected_open()
    prices = []
    for index, learner in enumerate(state.learners):
        mine = {name: sizes[index] for name, sizes in expected.items()}
        duals, config = learner.duals, learner.member.config
        prices.append(
            total({**duals.terms(mine, learner.done), **fixed_terms(config, mine, duals.nodes, learner.done)})
        )
    penalty = torch.stack([one.to(population.device) for one in prices])
    if penalty.requires_grad:
        gradient = torch.autograd.grad(penalty.sum(), state.parameters, allow_unused=True, materialize_grads=True)
    else:
        gradient = [torch.zeros_like(parameter) for parameter in state.parameters]
    flat = torch.cat([g.reshape(-1) for g in gradient])
    return Price(flat, penalty.detach(), {name: sizes.detach() for name, sizes in expected.items()})


def update(
    state: TrainState, streams: Streams, references: ReferenceLogits, chosen: Sequence[Example], passes: MicroBatches
) -> dict[str, Tensor]:
    """One update of every member that still has steps to go, on the examples of the global batch.

    Returns what to log, by name float32 [P]. Raises DivergedError on all ranks, before the update, if any value of any
    member on any rank is not finite.
    """
    sums = faithfulness(state, streams, references, chosen, passes)
    cost = price(state)
    gradient = (sums.gradient + cost.gradient).float()
    parameters = state.parameters
    for parameter, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
    logged = {"kl": sums.kl.float(), "hinge": sums.hinge.float(), "penalty": cost.penalty}
    logged["gradient_norm"] = _prepare(state, logged)
    for index, learner in enumerate(state.learners):
        if not learner.finished:
            learner.optimizer.step()
            learner.duals.update({name: sizes[index] for name, sizes in cost.expected.items()}, learner.done)
            learner.member.clamp_()
            learner.member.step += 1
        learner.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return logged | {f"open.{name}": sizes for name, sizes in cost.expected.items()}


def _prepare(state: TrainState, logged: Mapping[str, Tensor]) -> Tensor:
    """Clip every member's gradient and set its learning rates; returns the norms of its gates before, float32 [P].

    Learned constants are clipped apart, so that the gates do not feel them.
    """
    norms, lost = [], []
    for index, learner in enumerate(state.learners):
        member, train = learner.member, learner.member.config.train
        rate = learning_rate(train, learner.done)
        kinds = [(member.log_alpha, rate), (member.offset, rate / train.lr * member.config.ablation.lr)]
        found = [value[index] for value in logged.values()]
        for (parameters, own), group in zip(kinds, learner.optimizer.param_groups, strict=False):
            found.append(torch.nn.utils.clip_grad_norm_(parameters.values(), train.clip))
            group["lr"] = own
        norms.append(found[len(logged)])
        if not learner.finished and not all(map(torch.isfinite, found)):
            lost.append(index)
    if lost:
        learner = state.learners[lost[0]]
        raise DivergedError(
            f"member {lost[0]}, step {learner.member.step + 1}: the loss or its gradient is not finite; the gates were not "
            f"updated and the last checkpoint is good; lower train.lr ({learner.member.config.train.lr:g}) or load the "
            "model in float32",
            lost,
        )
    return torch.stack(norms)


def current_masks(state: TrainState) -> list[dict[str, Tensor]]:
    """The discretised masks of every member as it stands."""
    population = state.population
    return [
        discretise(population.decided(index), population.shapes, member.config.target.sizes())
        for index, member in enumerate(population.members)
    ]


def validate(state: TrainState, streams: Streams, lessons: Targets, passes: MicroBatches) -> list[dict[str, float]]:
    """Score the discretised circuits of all members and remember the gates of any that is its best so far."""
    circuits = current_masks(state)
    learned = state.population.learned()
    with streams.under(learned):
        scores = score(streams, lessons.examples, circuits, passes, references=lessons.references)
    rows = []
    for index, (learner, masks) in enumerate(zip(state.learners, circuits, strict=True)):
        sizes, config = count(masks), learner.member.config
        kl, difference = (float(values[index].mean()) for values in (scores.kl, scores.logit_difference))
        objective = _objective(config, kl, difference, sizes, learner.duals.nodes)
        if objective < learner.best.objective:
            gates = state.population.decided(index)
            learner.best = Best(objective, learner.member.step, gates, constants_of(learned, index))
        means = {name: float(getattr(scores, name)[index].mean()) for name in scores._fields}
        rows.append({**means, "objective": objective, **{f"kept.{name}": size for name, size in sizes.items()}})
    state.validated = state.step
    return rows


def constants_of(learned: Ablation | None, member: int) -> dict[str, Tensor]:
    """A copy of the learned constants of one member, by site [L, n]; empty if none are learned."""
    constants = {} if learned is None else learned.constants or {}
    return {site: values[member, :, 0].detach().clone() for site, values in constants.items()}


def _objective(config: Config, kl: float, difference: float, sizes: dict[str, int], nodes: dict[str, int]) -> float:
    """The training objective at full penalties, with discretised sizes. Asked sizes hold by construction: no term."""
    price = fixed_terms(config, {name: torch.tensor(float(size)) for name, size in sizes.items()}, nodes, done=1.0)
    return config.train.kl * kl + config.train.hinge * max(0.0, config.train.margin - difference) + float(total(price))
