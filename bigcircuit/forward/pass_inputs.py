"""Small functions of what goes into a pass and what comes out of a layer."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

from bigcircuit.ablation.ablation import Tokens
from bigcircuit.data.collate import Batch
from bigcircuit.forward.rows import FewTokens, TokenRows


def tokens_of(batch: Batch | TokenRows | FewTokens) -> Tokens:
    """Positions and examples of the tokens of a batch."""
    assert not isinstance(batch, FewTokens)
    positions = batch.position_ids
    if positions is None:
        positions = torch.arange(batch.clean.shape[1], device=batch.clean.device).unsqueeze(0)
    return Tokens(positions, batch.ids[batch.example_of_row])


def of_queries(mask: Tensor | None, queries: int) -> Tensor | None:
    """Cut a finished mask, [R, 1, queries, keys], to its last queries; others are [R, keys]."""
    return mask[:, :, -queries:] if mask is not None and mask.ndim == 4 else mask


def repeat_rows(tensor: Tensor | None, copies: int) -> Tensor | None:
    """Repeat all rows of a tensor, one copy after the other."""
    return None if tensor is None else tensor.repeat(copies, *[1] * (tensor.ndim - 1))


def named_cache(model: nn.Module, cache: Cache | None) -> dict[str, Cache]:
    """Name a cache as the model's argument: `cache` from transformers 5.24 on, `past_key_values` before; nothing for None."""
    if cache is None:
        return {}
    return {"cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values": cache}


def hidden_of(output: Any) -> Tensor:
    """Hidden state among what a layer returns."""
    return output[0] if isinstance(output, (tuple, list)) else output


def replace_forward(module: nn.Module, forward: Callable[..., Any]) -> Callable[[], None]:
    """Replace the forward of a module. Returns the function that puts back the one before."""
    put_back = partial(_put_back, module, module.__dict__.get("forward"))
    module.forward = forward
    return put_back


def _put_back(module: nn.Module, forward: Callable[..., Any] | None) -> None:
    if forward is None:
        del module.forward
    else:
        module.forward = forward  # of hooks that were installed before
