"""One update of a population, and the validation that chooses its best gates.

Shapes: P members, B examples, S scored positions, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.config import Config
from bigcircuit.distributed import Ranks
from bigcircuit.errors import DivergedError
from bigcircuit.evaluation.scores import score
from bigcircuit.gates.discretise import count, discretise
from bigcircuit.objective import contrast, kl_divergence
from bigcircuit.penalty import fixed_terms, total
from bigcircuit.schedule import learning_rate
from bigcircuit.streams import Streams
from bigcircuit.tasks.batch import Batch, collate
from bigcircuit.tasks.pair import Example
from bigcircuit.train_state import Best, TrainState


class ReferenceCache:
    """Logits of the full model at the scored positions of training batches, computed once an example.

    Keyed by example and not by batch, so a shuffled order is safe.
    """

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._rows: dict[int, Tensor] = {}

    def __call__(self, batch: Batch, ids: Sequence[int]) -> Tensor:
        """[S, V] for a batch collated for training; its scored positions are ordered by example."""
        if any(example not in self._rows for example in ids):
            counts = torch.bincount(batch.example_of_score, minlength=len(ids)).tolist()
            self._rows.update(zip(ids, self._streams.reference(batch).split(counts), strict=True))
        return torch.cat([self._rows[example] for example in ids])


class Losses(NamedTuple):
    """Terms of one update by member, float32 [P]; faithfulness is the mean over the examples of this rank's share."""

    kl: Tensor
    hinge: Tensor
    penalty: Tensor
    expected: dict[str, Tensor]
    """Expected open nodes by granularity and as `total`."""


def losses(
    state: TrainState, streams: Streams, batch: Batch, ids: Sequence[int], reference: Tensor, batch_size: int
) -> Losses:
    """Faithfulness under fresh gate noise and the price of the expected sizes, with graphs to the gates."""
    population = state.population
    stacked = population.stack()
    logits = streams.masked(batch, lambda index: population.sample_masks(stacked, index, ids), len(population))
    kl = kl_divergence(reference, logits, batch).sum(1) / batch_size
    hinge = torch.zeros_like(kl)
    configs = [member.config for member in population.members]
    if any(config.train.hinge for config in configs):
        margins = torch.tensor([config.train.margin for config in configs], device=kl.device).unsqueeze(1)
        hinge = (margins - contrast(logits, batch).logit_difference).clamp(min=0).sum(1) / batch_size
    expected = population.expected_open(stacked)
    prices = []
    for index, (member, duals) in enumerate(zip(population.members, state.duals, strict=True)):
        mine = {name: sizes[index] for name, sizes in expected.items()}
        done = member.step / member.config.train.steps
        prices.append(
            total({**duals.terms(mine, done), **fixed_terms(member.config, mine, duals.nodes, done)}).to(kl.device)
        )
    return Losses(kl, hinge, torch.stack(prices), expected)


def update(
    state: TrainState, streams: Streams, cache: ReferenceCache, chosen: Sequence[Example], ranks: Ranks
) -> dict[str, Tensor]:
    """One update of every member that still has steps to go, on the examples of the global batch.

    Returns what to log, by name float32 [P]. Raises DivergedError on all ranks, before the update, if any value of any
    member on any rank is not finite.
    """
    members = state.population.members
    share = ranks.share(chosen)
    state.optimizer.zero_grad(set_to_none=True)
    batch = collate(share, full=False, padding=members[0].config.task.padding).to(ranks.device)
    ids = [example.id for example in share]
    found = losses(state, streams, batch, ids, cache(batch, ids), len(chosen))
    weights = torch.tensor([[m.config.train.kl, m.config.train.hinge] for m in members], device=ranks.device)
    per_member = weights[:, 0] * found.kl + weights[:, 1] * found.hinge + found.penalty / ranks.size
    per_member.sum().backward()
    return _apply(state, found, ranks)


def _apply(state: TrainState, found: Losses, ranks: Ranks) -> dict[str, Tensor]:
    members = state.population.members
    logged = {name: getattr(found, name).detach().clone() for name in ("kl", "hinge", "penalty")}
    ranks.sum_([p.grad for m in members for p in m.parameters()] + [logged["kl"], logged["hinge"]])
    norms = []
    for index, (member, group) in enumerate(zip(members, state.optimizer.param_groups, strict=True)):
        train = member.config.train
        norm = torch.nn.utils.clip_grad_norm_(member.parameters(), train.clip)
        norms.append(norm)
        group["lr"] = learning_rate(train, member.step / train.steps)
        if member.step >= train.steps:
            for parameter in member.parameters():
                parameter.grad = None
        elif not all(torch.isfinite(value[index]) for value in logged.values()) or not torch.isfinite(norm):
            raise DivergedError(
                f"member {index}, step {state.step + 1}: the loss or its gradient is not finite; the gates were not "
                f"updated and the last checkpoint is good; lower train.lr ({train.lr:g}) or load the model in float32"
            )
    logged["gradient_norm"] = torch.stack(norms)
    logged |= {f"open.{name}": sizes.detach() for name, sizes in found.expected.items()}
    state.optimizer.step()
    _advance(state, found)
    return logged


def _advance(state: TrainState, found: Losses) -> None:
    for index, (member, duals) in enumerate(zip(state.population.members, state.duals, strict=True)):
        train = member.config.train
        if member.step < train.steps:
            duals.update({name: sizes[index] for name, sizes in found.expected.items()}, member.step / train.steps)
            member.clamp_()
            member.step += 1
    state.step += 1


def current_masks(state: TrainState) -> list[dict[str, Tensor]]:
    """The discretised masks of every member as it stands."""
    population = state.population
    return [discretise(dict(m.log_alpha), population.shapes, m.config.target.sizes()) for m in population.members]


@torch.no_grad()
def validate(
    state: TrainState, streams: Streams, examples: Sequence[Example], batch_size: int
) -> list[dict[str, float]]:
    """Score the discretised circuits of all members and remember the gates of any that is its best so far."""
    circuits = current_masks(state)
    scores = score(streams, examples, circuits, batch_size=batch_size)
    rows = []
    for index, (member, masks) in enumerate(zip(state.population.members, circuits, strict=True)):
        sizes = count(masks)
        kl = float(scores.kl[index].mean())
        objective = _objective(
            member.config, kl, float(scores.logit_difference[index].mean()), sizes, state.duals[index].nodes
        )
        if objective < state.best[index].objective:
            gates = {name: values.detach().clone() for name, values in member.log_alpha.items()}
            state.best[index] = Best(objective, member.step, gates)
        means = {name: float(getattr(scores, name)[index].mean()) for name in scores._fields}
        rows.append({**means, "objective": objective, **{f"kept.{name}": size for name, size in sizes.items()}})
    return rows


def _objective(config: Config, kl: float, difference: float, sizes: dict[str, int], nodes: dict[str, int]) -> float:
    """The training objective at full penalties, with discretised sizes. Asked sizes hold by construction: no term."""
    price = fixed_terms(config, {name: torch.tensor(float(size)) for name, size in sizes.items()}, nodes, done=1.0)
    return config.train.kl * kl + config.train.hinge * max(0.0, config.train.margin - difference) + float(total(price))
