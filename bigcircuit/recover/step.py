"""One update of an exported model, its state, and its scores on held-out windows.

Shapes: N windows, B windows of a micro-batch, T tokens, V vocabulary.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import DivergedError
from bigcircuit.io.checkpoint import SavedState
from bigcircuit.metrics.bootstrap import intervals
from bigcircuit.recover.config import RecoverSettings
from bigcircuit.recover.trainable import Trained


def kl_to_base(base: Tensor, export: Tensor) -> Tensor:
    """KL(base || export) of each window, the mean over its positions in nats, float32 [B]. base, export: logits [B, T, V]."""
    expected = base.float().log_softmax(-1)
    found = export.float().log_softmax(-1)
    return (expected.exp() * (expected - found)).sum(-1).mean(-1)


def next_token_loss(logits: Tensor, windows: Tensor) -> Tensor:
    """Cross entropy of the next token of each window, the mean over T - 1 positions in nats, float32 [B]."""
    losses = cross_entropy(logits[:, :-1].float().transpose(1, 2), windows[:, 1:], reduction="none")
    return losses.mean(-1)


def shares(count: int, size: int, ranks: Ranks) -> Iterator[slice]:
    """Divide windows into micro-batches and yield those of this rank: which windows are together does not depend on ranks."""
    for number, start in enumerate(range(0, count, size)):
        if number % ranks.size == ranks.rank:
            yield slice(start, start + size)


@dataclass
class RecoverState:
    """Adam's state (Kingma and Ba 2015) and the step; the order of the windows is a function of the step."""

    trained: Sequence[Trained]
    optimizer: torch.optim.Adam
    step: int = 0
    losses: list[float] = field(default_factory=list)
    """Losses since the last line of metrics.jsonl."""

    @classmethod
    def new(cls, trained: Sequence[Trained]) -> "RecoverState":
        """Make the state at step 0."""
        return cls(trained, torch.optim.Adam([one.parameter for one in trained]))

    def export(self, base: Mapping[str, str]) -> SavedState:
        """Collect what `restore` needs. base: fingerprint of the run."""
        tensors: dict[str, Tensor] = {}
        for one in self.trained:
            tensors[f"{one.name}.value"] = one.parameter.detach()
            for key in ("exp_avg", "exp_avg_sq") if self.step else ():
                tensors[f"{one.name}.{key}"] = self.optimizer.state[one.parameter][key]
        data = {"step": self.step, "losses": self.losses, "threads": torch.get_num_threads()}
        return SavedState(tensors, data, dict(base))

    @torch.no_grad()
    def restore(self, saved: SavedState) -> None:
        """Restore the state that `export` collected, of the same export and settings."""
        self.step, self.losses = saved.data["step"], list(saved.data["losses"])
        for one in self.trained:
            one.parameter.copy_(saved.tensors[f"{one.name}.value"])
            if self.step:
                moments = {
                    key: saved.tensors[f"{one.name}.{key}"].to(one.parameter.device, copy=True)
                    for key in ("exp_avg", "exp_avg_sq")
                }
                self.optimizer.state[one.parameter] = {"step": torch.tensor(float(self.step)), **moments}


class Models(NamedTuple):
    """The model that is trained and the base, which is not."""

    export: Any
    base: Any


def losses_of(models: Models, windows: Tensor, loss: str) -> Tensor:
    """Loss of each window, float32 [B], with a graph to what is trained."""
    logits = models.export(input_ids=windows, use_cache=False).logits
    if loss == "next_token":
        return next_token_loss(logits, windows)
    with torch.no_grad():
        expected = models.base(input_ids=windows, use_cache=False).logits
    return kl_to_base(expected, logits)


def rate_at(settings: RecoverSettings, step: int) -> float:
    """Learning rate of an update: a linear rise, then half a cosine down to `lr_final` of the highest."""
    rise = max(round(settings.lr_warmup * settings.steps), 1)
    if step < rise:
        return settings.lr * (step + 1) / rise
    done = (step - rise) / max(settings.steps - rise, 1)
    return settings.lr * (settings.lr_final + (1 - settings.lr_final) * 0.5 * (1 + math.cos(math.pi * done)))


def update_export(
    state: RecoverState, models: Models, windows: Tensor, settings: RecoverSettings, ranks: Ranks
) -> float:
    """Update what is trained on the windows of a batch, int64 [N, T]. Returns the loss, the same on all ranks.

    Gradients are summed in float64, so that no float32 bit depends on how micro-batches are dealt to ranks. Raises DivergedError
    on all ranks, before the update, if the loss or a gradient is not finite.
    """
    parameters = [one.parameter for one in state.trained]
    sums = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    loss = torch.zeros(1, dtype=torch.float64, device=ranks.device)
    for part in shares(len(windows), settings.micro_batch_size, ranks):
        own = losses_of(models, windows[part].to(ranks.device), settings.loss).sum() / len(windows)
        gradients = torch.autograd.grad(own, parameters, allow_unused=True)
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total.add_(gradient)
        loss += own.detach()
    for total in (loss, *sums):
        ranks.all_reduce([total])
    for one, total in zip(state.trained, sums, strict=True):
        one.parameter.grad = total.to(one.parameter.dtype)
        one.opened.keep_(one.parameter.grad)
    norm = torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
    if not (torch.isfinite(loss).all() and torch.isfinite(norm)):
        raise DivergedError(
            f"step {state.step + 1}: the loss or its gradient is not finite; nothing was updated and the last checkpoint is good; "
            f"lower recover.lr ({settings.lr:g})"
        )
    for group in state.optimizer.param_groups:
        group["lr"] = rate_at(settings, state.step)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return float(loss)


class TextScores(NamedTuple):
    """Scores on held-out windows: a value and the ends of its 95% bootstrap interval over windows."""

    perplexity: tuple[float, float, float]
    kl: tuple[float, float, float]
    """KL(base || model), nats a position."""


@torch.no_grad()
def score_windows(model: Any, base: Any, windows: Tensor, settings: RecoverSettings, ranks: Ranks) -> TextScores:
    """Score a model on windows, int64 [N, T]; the same on all ranks."""
    found = torch.zeros(2, len(windows), dtype=torch.float64, device=ranks.device)
    for part in shares(len(windows), settings.micro_batch_size, ranks):
        chosen = windows[part].to(ranks.device)
        logits = model(input_ids=chosen, use_cache=False).logits
        found[0, part] = next_token_loss(logits, chosen).double()
        if model is not base:
            found[1, part] = kl_to_base(base(input_ids=chosen, use_cache=False).logits, logits).double()
    ranks.all_reduce([found])
    estimated = intervals(found.cpu().numpy())
    rows = [tuple(map(float, row)) for row in zip(*estimated, strict=True)]
    return TextScores(tuple(np.exp(rows[0]).tolist()), rows[1])  # type: ignore[arg-type]
