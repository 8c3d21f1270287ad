"""Logits of a few positions at a time: what a model does behind its layers, run alone.

Passes over windows of general text end at the input of the vocabulary projection, because the logits of all positions are
vocabulary / hidden times as large. The model's own `forward` computes them from there, so that scales and soft caps behind the
projection are the model's.

Shapes: N positions, D width of the projection's input, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPast

from bigcircuit.forward.pass_inputs import replace_forward
from bigcircuit.model.sites import FrozenModel


class _Output(BaseModelOutputWithPast):
    """What the layers of any model return; fields that only some models have are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


def logits_of(frozen: FrozenModel, inputs: Tensor) -> Tensor:
    """Compute logits [..., V] from inputs of the vocabulary projection, [..., D]. Outside of passes; may be recomputed."""
    flat = inputs.reshape(1, -1, inputs.shape[-1])
    with _without_layers(frozen, flat):
        token = torch.zeros(1, 1, dtype=torch.long, device=flat.device)
        found = frozen.model(input_ids=token, use_cache=False).logits
    return found.reshape(*inputs.shape[:-1], found.shape[-1])


@contextmanager
def _without_layers(frozen: FrozenModel, inputs: Tensor) -> Iterator[None]:
    """Have the model's layers compute nothing, and the vocabulary projection get these inputs, inside the context."""

    def nothing(*_: Any, **__: Any) -> _Output:
        return _Output(last_hidden_state=inputs[:, :1])

    with ExitStack() as undo:
        owner, *names = frozen.model, *frozen.path.split(".")[:-1]
        for name in names:
            owner = getattr(owner, name)
            undo.callback(replace_forward(owner, nothing))
        undo.callback(frozen.head.register_forward_pre_hook(lambda _, args: (inputs, *args[1:])).remove)
        yield
