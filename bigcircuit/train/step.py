"""One update of a population, and the validation that chooses its best gates.

Shapes: P members, B examples, S scored positions, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.config.schema import Config
from bigcircuit.data.micro_batches import MicroBatch, MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.errors import DivergedError
from bigcircuit.forward.corrupted import Corrupted
from bigcircuit.forward.few_bits import few_bits
from bigcircuit.forward.finite import check_corrupted
from bigcircuit.forward.reference_logits import Targets
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import count
from bigcircuit.gates.schedules import learning_rate
from bigcircuit.metrics.compare import comparison_of
from bigcircuit.metrics.score import score
from bigcircuit.model.sites import FrozenModel
from bigcircuit.train.layer_sizes import sized_masks
from bigcircuit.train.own_loss import loss_as_score, own_loss
from bigcircuit.train.penalty import fixed_terms, total
from bigcircuit.train.state import Best, TrainState


class Sums(NamedTuple):
    """Sums of the faithfulness terms over examples and ranks, in float64, so that no float32 bit depends on their order."""

    gradient: Tensor
    """float64 [all gates and learned constants of all members, and copied weights, in order]"""
    kl: Tensor
    """float64 [P], nats; the mean over the batch."""
    hinge: Tensor
    """float64 [P]"""
    own: Tensor
    """float64 [P], of `train.loss`; 0 without."""


def faithfulness_gradient(
    state: TrainState,
    streams: Streams,
    references: Callable[[MicroBatch], Tensor],
    chosen: Sequence[Example],
    micro_batches: MicroBatches,
    store: Callable[[MicroBatch], Corrupted] | None = None,
) -> Sums:
    """Measure how far every member, under fresh gate noise, is from the full model on a global batch, with the gradient.

    store: activations of the corrupted run of these examples; without them the corrupted prompts are run beside.
    """
    population, parameters = state.population, state.parameters
    sums = Sums(*(torch.zeros(n, dtype=torch.float64, device=micro_batches.ranks.device)
                  for n in (sum(p.numel() for p in parameters), *[len(population)] * 3)))  # fmt: skip
    divided = micro_batches if store is None else micro_batches.aligned()
    for micro_batch in divided.iterate(chosen, full=False, phase="update"):
        terms = _terms(state, streams, references, micro_batch, None if store is None else store(micro_batch))
        weights = torch.tensor(
            [[m.config.train.kl, m.config.train.hinge] for m in population.members], device=terms.kl.device
        )
        loss = (weights[:, 0] * terms.loss + weights[:, 1] * terms.hinge).sum() / len(chosen)
        if terms.own is not None:
            loss = loss + terms.own.sum() / len(chosen)
        # A copied weight may be used by no token of a pass; a gate never.
        unused = state.weights is not None
        gradient = torch.autograd.grad(loss, parameters, allow_unused=unused, materialize_grads=unused)
        streams.frozen.release_gathered()
        if micro_batch.is_counted:
            sums.gradient.add_(torch.cat([g.reshape(-1) for g in gradient]))
            sums.kl.add_(terms.kl.detach() / len(chosen))
            sums.hinge.add_(terms.hinge.detach() / len(chosen))
            if terms.own is not None:
                sums.own.add_(terms.own.detach() / len(chosen))
    micro_batches.ranks.all_reduce(sums)
    return sums


class _Terms(NamedTuple):
    """Terms of every member, summed over the examples of a micro-batch, float32 [P] each."""

    loss: Tensor
    """What `train.kl` weighs: KL, or the cross-entropy of a text."""
    kl: Tensor
    hinge: Tensor
    own: Tensor | None
    """Of `train.loss`; None without."""


def _terms(
    state: TrainState,
    streams: Streams,
    references: Callable[[MicroBatch], Tensor],
    micro_batch: MicroBatch,
    corrupted: Corrupted | None,
) -> _Terms:
    """Compute the terms of every member, with graphs."""
    population = state.population
    masks = population.draw([example.id for example in micro_batch.examples])
    # The seed of an ablation that draws noise: fresh in every update, and 0 where circuits are scored.
    learned, saved = population.learned(), population.members[0].config.train.saved
    with streams.under(learned or streams.ablation.reseeded(1 + state.step)):
        reference = references(micro_batch)
        with few_bits(saved):
            passed = streams.masked(micro_batch.batch, masks, len(population), corrupted)
        found = comparison_of(streams.frozen, micro_batch.batch, passed, reference)
    configs = [member.config for member in population.members]
    name, kl = configs[0].train.loss, found.kl.sum(1)  # one loss for all members
    own = None if name is None else own_loss(name, found.logits, micro_batch.batch, reference).sum(1)
    loss = found.cross_entropy.sum(1) if configs[0].task.text.loss == "cross_entropy" else kl
    if not any(config.train.hinge for config in configs):
        return _Terms(loss, kl, torch.zeros_like(kl), own)
    margins = torch.tensor([config.train.margin for config in configs], device=kl.device).unsqueeze(1)
    return _Terms(loss, kl, (margins - found.contrast.logit_difference).clamp(min=0).sum(1), own)


class Price(NamedTuple):
    """Penalties of the members' sizes; the same on every rank."""

    gradient: Tensor
    """float32, laid out as Sums.gradient."""
    penalty: Tensor
    """float32 [P]"""
    expected: dict[str, Tensor]
    """Expected open nodes by granularity and as `total`, float32 [P]."""


def price(state: TrainState) -> Price:
    """Compute the penalties of the expected sizes and their gradient."""
    population = state.population
    expected = population.expected_open()
    prices = []
    for index, member_state in enumerate(state.member_states):
        mine = {name: sizes[index] for name, sizes in expected.items()}
        duals, config = member_state.duals, member_state.member.config
        prices.append(
            total({**duals.terms(mine, member_state.done), **fixed_terms(config, mine, duals.nodes, member_state.done)})
        )
    penalty = torch.stack([one.to(population.device) for one in prices])
    if penalty.requires_grad:
        found = torch.autograd.grad(penalty.sum(), state.parameters, allow_unused=True, materialize_grads=True)
        gradient = list(found)
    else:
        gradient = [torch.zeros_like(parameter) for parameter in state.parameters]
    flat = torch.cat([g.reshape(-1) for g in gradient])
    return Price(flat, penalty.detach(), {name: sizes.detach() for name, sizes in expected.items()})


def update(
    state: TrainState,
    streams: Streams,
    references: Callable[[MicroBatch], Tensor],
    chosen: Sequence[Example],
    micro_batches: MicroBatches,
    store: Callable[[MicroBatch], Corrupted] | None = None,
) -> dict[str, Tensor]:
    """Update every member that has steps left, on the examples of the global batch. store: see `faithfulness_gradient`.

    Returns what to log, by name float32 [P]. Raises DivergedError on all ranks, before the update, if any value of any
    member on any rank is not finite, and UserError where the frozen model's activations are to blame.
    """
    sums = faithfulness_gradient(state, streams, references, chosen, micro_batches, store)
    cost = price(state)
    gradient = (sums.gradient + cost.gradient).float()
    parameters = state.parameters
    for parameter, part in zip(parameters, gradient.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)
    logged = {"kl": sums.kl.float(), "hinge": sums.hinge.float(), "penalty": cost.penalty}
    if state.population.members[0].config.train.loss:
        logged["loss"] = sums.own.float()
    try:
        logged["gradient_norm"] = _prepare(state, logged)
    except DivergedError:
        check_corrupted(streams, chosen, micro_batches)  # the logits on clean prompts were found finite before
        raise
    for index, member_state in enumerate(state.member_states):
        if not member_state.finished:
            member_state.optimizer.step()
            member_state.duals.update({name: sizes[index] for name, sizes in cost.expected.items()}, member_state.done)
            member_state.member.clamp_()
            member_state.member.step += 1
        member_state.optimizer.zero_grad(set_to_none=True)
    if state.weights:
        state.weights.step()
    state.step += 1
    return logged | {f"open.{name}": sizes for name, sizes in cost.expected.items()}


def _prepare(state: TrainState, logged: Mapping[str, Tensor]) -> Tensor:
    """Clip every member's gradient and set its learning rates. Returns the norms of the gates' gradients before, float32 [P].

    Learned constants are clipped apart, so that they do not scale the gates' gradient.
    """
    norms, lost = [], []
    for index, member_state in enumerate(state.member_states):
        member, train = member_state.member, member_state.member.config.train
        rate = learning_rate(train, member_state.done)
        kinds = [(member.log_alpha, rate), (member.offset, rate / train.lr * member.config.ablation.lr)]
        found = [value[index] for value in logged.values()]
        for (parameters, own), group in zip(kinds, member_state.optimizer.param_groups, strict=False):
            found.append(torch.nn.utils.clip_grad_norm_(parameters.values(), train.clip))
            group["lr"] = own
        norms.append(found[len(logged)])
        if state.weights:  # of the one member
            found.append(state.weights.prepare(train, member_state.done))
        if not member_state.finished and not all(map(torch.isfinite, found)):
            lost.append(index)
    if lost:
        member_state = state.member_states[lost[0]]
        raise DivergedError(
            f"member {lost[0]}, step {member_state.member.step + 1}: the loss or its gradient is not finite; the gates were not "
            f"updated and the last checkpoint is good; lower train.lr ({member_state.member.config.train.lr:g}) or load the "
            "model in float32",
            lost,
        )
    return torch.stack(norms)


def current_masks(state: TrainState, frozen: FrozenModel) -> list[dict[str, Tensor]]:
    """Discretise the current gates of every member, in the sizes that it asks for."""
    population = state.population
    return [
        sized_masks(population.decided(index), frozen, member.config.target)
        for index, member in enumerate(population.members)
    ]


def validate(
    state: TrainState, streams: Streams, targets: Targets, micro_batches: MicroBatches
) -> list[dict[str, float]]:
    """Score the discretised circuits of all members, and keep the gates of each member whose objective is its best so far."""
    circuits, own = current_masks(state, streams.frozen), state.population.members[0].config.train.loss
    learned = state.population.learned()
    with streams.under(learned), loss_as_score(own) if own else nullcontext():
        scores = score(
            streams, targets.examples, circuits, micro_batches, references=targets.references, phase="validation"
        )
    rows = []
    for index, (member_state, masks) in enumerate(zip(state.member_states, circuits, strict=True)):
        sizes, config = count(masks), member_state.member.config
        means = {score: float(values[index]) for score, values in scores.means().items()}
        objective = _objective(config, means, sizes, member_state.duals.nodes)
        objective += means["loss"] if own else 0.0
        if objective < member_state.best.objective:
            gates = state.population.decided(index)
            member_state.best = Best(objective, member_state.member.step, gates, constants_of(learned, index))
        rows.append({**means, "objective": objective, **{f"kept.{name}": size for name, size in sizes.items()}})
    state.validated = state.step
    return rows


def constants_of(learned: Ablation | None, member: int) -> dict[str, Tensor]:
    """Copy the learned constants of one member, by site [L, n]; empty if none are learned."""
    constants = {} if learned is None else learned.constants or {}
    return {site: values[member, :, 0].detach().clone() for site, values in constants.items()}


def _objective(config: Config, means: Mapping[str, float], sizes: dict[str, int], nodes: dict[str, int]) -> float:
    """Compute the training objective at full penalties and discretised sizes. Asked sizes hold by construction: no term.

    means: scores of the circuit by name.
    """
    price = fixed_terms(config, {name: torch.tensor(float(size)) for name, size in sizes.items()}, nodes, done=1.0)
    hinge = max(0.0, config.train.margin - means["logit_difference"]) if config.train.hinge else 0.0
    loss = means[config.task.text.loss]
    return config.train.kl * loss + config.train.hinge * hinge + float(total(price))
