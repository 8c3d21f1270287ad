"""The last layer of a pass over the suffix: only the columns from the first scored one on go through its attention and MLP.

What the layer gives for earlier columns is used by nothing but the keys and values of the scored ones. So it runs twice: on all
columns until its keys and values are known, then on the last columns against these, as when it continues a text.

Shapes: N = P * R rows, T tokens of the pass, c last columns, H key/value heads, d width of a head, D hidden size.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from bigcircuit.forward.corrupted import KeysAndValues
from bigcircuit.forward.pass_inputs import hidden_of

FEWEST = 16
"""Rows times columns of a pass. Products of fewer may have other last bits than those of more."""
FEWEST_COLUMNS = 4
"""Queries of a head, whose products with its keys are of their own where attention is written out."""
_COLUMNS = {"attention_mask": (4, 2), "position_ids": (2, 1), "position_embeddings": (3, 1), "cache_position": (1, 0)}
"""Argument of a layer -> number of dimensions, and which of them is that of the columns."""


def count_columns(tokens: int, first_scored: int, rows: int) -> int:
    """Count the last columns that a pass needs of its last layer, of `tokens` in all and so many rows of one member."""
    return min(tokens, max(tokens - first_scored, FEWEST_COLUMNS, -(-FEWEST // rows)))


def run_last_columns(plain: Callable[..., Any], hidden: Tensor, arguments: Mapping[str, Any], columns: int) -> Any:
    """Run a layer for its last columns; the hidden state that it returns is 0 in the others, [N, T, D].

    plain: forward of the layer. Where the columns of an argument are not known the whole layer runs.
    """
    short = _of_columns(arguments, hidden.shape[1], columns)
    before = next((value for value in arguments.values() if isinstance(value, Cache)), None)
    if short is None or before is None or columns >= hidden.shape[1]:
        return plain(hidden, **arguments)
    seen = _SeenCache(before)
    try:
        # Without keys and values of its own, which layers may share, it ends as usual.
        return plain(hidden, **_with_cache(arguments, seen))
    except _SeenError:
        output = plain(hidden[:, -columns:], **_with_cache(short, _KnownCache(seen.found, columns)))
    last = hidden_of(output)
    whole = torch.cat([last.new_zeros(len(hidden), hidden.shape[1] - columns, last.shape[2]), last], dim=1)
    return (whole, *output[1:]) if isinstance(output, (tuple, list)) else whole


class _SeenError(Exception):
    """The keys and values of a layer are known."""


class _SeenCache(Cache):
    """Cache that ends a layer as soon as it has its keys and values."""

    def __init__(self, before: Cache) -> None:
        super().__init__(layers=[])
        self._before = before
        self.found: KeysAndValues

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> KeysAndValues:
        """Keep the keys and values of all columns. Raises _SeenError."""
        self.found = self._before.update(key_states, value_states, layer_idx)
        raise _SeenError

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of columns before the pass."""
        return self._before.get_seq_length(layer_idx)


class _KnownCache(Cache):
    """Cache whose keys and values, [N, H, columns, d], are known, those of the pass included."""

    def __init__(self, found: KeysAndValues, columns: int) -> None:
        super().__init__(layers=[])
        self._found, self._columns = found, columns

    def update(self, *_: Any, **__: Any) -> KeysAndValues:
        """Return the known keys and values."""
        return self._found

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 (of the one layer)
        """Return the number of columns before the pass."""
        return self._found[0].shape[2] - self._columns


def _with_cache(arguments: Mapping[str, Any], cache: Cache) -> dict[str, Any]:
    return {name: cache if isinstance(value, Cache) else value for name, value in arguments.items()}


def _of_columns(arguments: Mapping[str, Any], tokens: int, columns: int) -> dict[str, Any] | None:
    """Cut arguments to the last columns; None without a finished mask, or where some argument may have columns elsewhere."""
    mask = arguments.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[2] != tokens:
        return None
    try:
        return {name: _cut(name, value, tokens, columns) for name, value in arguments.items()}
    except _UnknownError:
        return None


class _UnknownError(Exception):
    """An argument may have columns in an unknown dimension."""


def _cut(name: str, value: Any, tokens: int, columns: int) -> Any:
    if isinstance(value, (tuple, list)):
        parts = [_cut(name, one, tokens, columns) for one in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if isinstance(value, dict) and value:
        raise _UnknownError
    if not isinstance(value, Tensor):
        return value
    dimensions, place = _COLUMNS.get(name, (-1, 0))
    if value.ndim == dimensions:
        return value.narrow(place, tokens - columns, columns) if value.shape[place] == tokens else value
    if tokens in value.shape:
        raise _UnknownError
    return value
