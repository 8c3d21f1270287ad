"""A term of the loss that the user computes: a function named by `train.loss`, added to KL and hinge.

Shapes: P circuits, B examples, S scored positions, V vocabulary (see data/collate.py).
"""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from bigcircuit.config.own_code import calling, find_function
from bigcircuit.data.collate import Batch, collate
from bigcircuit.data.pair import Example
from bigcircuit.errors import UserError
from bigcircuit.metrics.logit_metrics import LogitComparison
from bigcircuit.metrics.registry import SCORES, ScoreKind

LOSS_ENTRY_POINTS = "bigcircuit.losses"
"""Group of entry points in which packages declare losses of their own."""
Loss = Callable[[Tensor, Batch, Tensor], Tensor]
"""Function of the logits of one circuit at the scored positions, [S, V], the batch, and the logits of the full model, [S, V] ->
one number a pair, [B], differentiable in the first."""


def loss_function(name: str) -> Loss:
    """Find the function that `train.loss` names. Raises UserError."""
    return find_function(name, LOSS_ENTRY_POINTS, "train.loss")


def loss_sha256(name: str) -> str:
    """Hash a loss and the file that defines it, so that a run is not resumed with another one.

    The whole file, because the function may call others of it and use its constants; what the file imports is not looked at.
    Without a file, as in a notebook, the source of the function; empty where there is no source.
    """
    function = inspect.unwrap(loss_function(name))
    try:
        file = Path(inspect.getsourcefile(function) or "")
        content = file.read_bytes() if file.is_file() else inspect.getsource(function).encode()
        bound = [function.__qualname__, function.__defaults__, inspect.getclosurevars(function).nonlocals]
    except (OSError, TypeError, AttributeError):
        return ""
    return hashlib.sha256(content + json.dumps(bound, default=lambda value: type(value).__name__).encode()).hexdigest()


def own_loss(name: str, logits: Tensor, batch: Batch, reference: Tensor) -> Tensor:
    """Compute the loss of every circuit on every pair, float32 [P, B]. logits [P, S, V], reference [S, V].

    On the meta device, where memory is predicted, KL takes its place: functions may look at values. Raises UserError where the
    function fails or returns something else than a number a pair.
    """
    if logits.is_meta:
        return LogitComparison(reference, logits, batch).kl
    function, pairs = loss_function(name), len(batch.ids)
    found = []
    for circuit in logits:
        with calling(f"train.loss {name}"):
            values = function(circuit, batch, reference)
        if not isinstance(values, Tensor) or tuple(values.shape) != (pairs,):
            what = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise UserError(
                f"train.loss {name}: returned {what} for {pairs} pairs; return a tensor of one number a pair"
            )
        if circuit.requires_grad and not values.requires_grad:
            raise UserError(
                f"train.loss {name}: its result does not depend on the logits in a differentiable way (argmax, comparisons and "
                ".item() have no gradient); use functions that have one"
            )
        found.append(values)
    return torch.stack(found).float()


def try_loss(name: str, examples: Sequence[Example], vocabulary: int) -> None:
    """Compute a loss on two pairs and random logits, before weights are loaded. Raises UserError."""
    batch = collate(examples[:2], full=False)
    generator = torch.Generator().manual_seed(0)
    reference, circuit = torch.randn(2, len(batch.score_row), vocabulary, generator=generator)
    own_loss(name, circuit[None].requires_grad_(), batch, reference)


@contextmanager
def loss_as_score(name: str) -> Iterator[None]:
    """Score circuits by the loss as well, as `loss`, inside the context."""
    SCORES["loss"] = ScoreKind(
        short="loss",
        long="loss",
        description="loss of the user",
        lower_is_better=True,
        compute=lambda compared: own_loss(name, compared.logits, compared.batch, compared.reference),
    )
    try:
        yield
    finally:
        del SCORES["loss"]
