"""One update of an exported model, its state, and its scores on held-out windows.

Shapes: B windows of a micro-batch, S their scored positions, V vocabulary.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigcircuit.data.collate import Batch, collate
from bigcircuit.data.pair import Example
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import DivergedError
from bigcircuit.io.checkpoint import SavedState
from bigcircuit.metrics.compare import TextComparison, compare_logits
from bigcircuit.metrics.score import ExampleScores, summarise
from bigcircuit.recover.config import RecoverSettings
from bigcircuit.recover.trainable import Trained


def shares(count: int, size: int, ranks: Ranks) -> Iterator[slice]:
    """Divide windows into micro-batches and yield those of this rank: which windows are together does not depend on ranks."""
    for number, start in enumerate(range(0, count, size)):
        if number % ranks.size == ranks.rank:
            yield slice(start, start + size)


class BestStep(NamedTuple):
    """The step with the lowest loss on validation windows."""

    step: int
    score: float
    """As LOWERED_SCORES of the loss names it."""
    values: list[Tensor]
    """Of what is trained, in its order."""


@dataclass
class RecoverState:
    """Adam's state (Kingma and Ba 2015), the step and the best step; the order of the windows is a function of the step."""

    trained: Sequence[Trained]
    optimizer: torch.optim.Adam
    step: int = 0
    losses: list[float] = field(default_factory=list)
    """Losses since the last line of metrics.jsonl."""
    best: BestStep | None = None
    """None before the first score on validation windows, and where there are none."""

    def keep_if_best(self, score: float) -> None:
        """Keep the values of this step if their score on the validation windows is the lowest so far."""
        if self.best is None or score < self.best.score:
            self.best = BestStep(self.step, score, [one.parameter.detach().clone() for one in self.trained])

    @torch.no_grad()
    def use_best(self) -> None:
        """Set what is trained to its values at the best step."""
        if self.best is not None:
            for one, value in zip(self.trained, self.best.values, strict=True):
                one.parameter.copy_(value)

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
        data = {"step": self.step, "losses": self.losses, "threads": torch.get_num_threads(), "best": None}
        if self.best is not None:
            data["best"] = [self.best.step, self.best.score]
            named = zip(self.trained, self.best.values, strict=True)
            tensors |= {f"{one.name}.best": value for one, value in named}
        return SavedState(tensors, data, dict(base))

    @torch.no_grad()
    def restore(self, saved: SavedState) -> None:
        """Restore the state that `export` collected, of the same export and settings."""
        self.step, self.losses = saved.data["step"], list(saved.data["losses"])
        if saved.data["best"] is not None:
            values = [saved.tensors[f"{one.name}.best"].to(one.parameter.device, copy=True) for one in self.trained]
            step, score = saved.data["best"]
            self.best = BestStep(step, score, values)
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


def compare_windows(model: Any, base: Any | None, batch: Batch) -> TextComparison:
    """Compare a model, P = 1 and with a graph, with the base on windows; base: None where KL is not asked for and is 0."""
    logits = _scored_logits(model, batch)
    with torch.no_grad():
        expected = logits.detach() if base is None else _scored_logits(base, batch)
    return compare_logits(expected, logits.unsqueeze(0), batch)


def _scored_logits(model: Any, batch: Batch) -> Tensor:
    """Compute logits at the scored positions, [S, V]. What pads a window is behind it, where no scored token looks."""
    return model(input_ids=batch.clean, use_cache=False).logits[batch.score_row, batch.score_position]


def rate_at(settings: RecoverSettings, step: int) -> float:
    """Learning rate of an update: a linear rise, then half a cosine down to `lr_final` of the highest."""
    rise = max(round(settings.lr_warmup * settings.steps), 1)
    if step < rise:
        return settings.highest_rate * (step + 1) / rise
    done = (step - rise) / max(settings.steps - rise, 1)
    return settings.highest_rate * (settings.lr_final + (1 - settings.lr_final) * 0.5 * (1 + math.cos(math.pi * done)))


def update_export(
    state: RecoverState, models: Models, windows: Sequence[Example], settings: RecoverSettings, ranks: Ranks
) -> float:
    """Update what is trained on the windows of a batch. Returns the loss, the same on all ranks.

    Gradients are summed in float64, so that no float32 bit depends on how micro-batches are dealt to ranks. Raises DivergedError
    on all ranks, before the update, if the loss or a gradient is not finite.
    """
    parameters = [one.parameter for one in state.trained]
    sums = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
    loss = torch.zeros(1, dtype=torch.float64, device=ranks.device)
    for part in shares(len(windows), settings.micro_batch_size, ranks):
        batch = collate(windows[part], full=False).to(ranks.device)
        if settings.loss == "kl":
            losses = compare_windows(models.export, models.base, batch).kl
        else:
            losses = compare_windows(models.export, None, batch).cross_entropy
        own = losses.sum() / len(windows)
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
            f"lower recover.lr ({settings.highest_rate:g})"
        )
    for group in state.optimizer.param_groups:
        group["lr"] = rate_at(settings, state.step)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    return float(loss)


LOWERED_SCORES = {"kl": "kl", "next_token": "perplexity"}
"""`recover.loss` -> the field of TextScores that it lowers."""


class TextScores(NamedTuple):
    """Scores on held-out windows: a value and the ends of its 95% bootstrap interval over documents."""

    perplexity: tuple[float, float, float]
    kl: tuple[float, float, float]
    """KL(base || model), nats a token."""


@torch.no_grad()
def score_windows(
    model: Any, base: Any, windows: Sequence[Example], settings: RecoverSettings, ranks: Ranks
) -> TextScores:
    """Score a model on windows; the same on all ranks."""
    found = torch.zeros(2, 1, len(windows), dtype=torch.float64, device=ranks.device)
    for part in shares(len(windows), settings.micro_batch_size, ranks):
        compared = compare_windows(
            model, None if model is base else base, collate(windows[part], full=False).to(ranks.device)
        )
        found[0, :, part], found[1, :, part] = compared.kl, compared.cross_entropy
    ranks.all_reduce([found])
    values = zip(("kl", "cross_entropy"), found.float().cpu(), strict=True)
    scores = ExampleScores(values).by_document(windows)
    summary = summarise(scores, scores, 0)
    return TextScores(*((one.mean, one.low, one.high) for one in (summary["perplexity"], summary["kl"])))
