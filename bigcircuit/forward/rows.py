"""Which rows of a layer's arguments belong to which stream.

The outer model makes masks, positions and biases for the rows of all streams at once, and hands them to every layer. An argument
with a known name has its rows in a known dimension. For others the dimension is found, because sizes alone do not tell: two small
passes with 2 and with 3 rows are compared. A bias with a row a head is [rows x heads, ...].
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

ArgumentShapes = dict[tuple, tuple[int, ...]]
"""Layer, name of an argument and keys within it -> shape."""
_KNOWN: dict[str, Callable[[Tensor], int | None]] = {
    "hidden_states": lambda value: 0 if value.ndim == 3 else None,
    "attention_mask": lambda value: 0 if value.ndim == 4 else None,
    "position_ids": lambda value: 0 if value.ndim == 2 else None,
    "position_embeddings": lambda value: 0 if value.ndim == 3 else None,
}
"""Argument -> dimension of its rows, where the shape is the usual one."""


class Rows(NamedTuple):
    """Rows of the two streams in what the outer model makes for a batch."""

    masked: int
    """P * R rows of the masked stream; they come first."""
    corrupted: int
    """R rows of the corrupted stream, 0 without one."""


class TokenRows(NamedTuple):
    """The tokens of a pass of which all logits are computed; fields as in Batch, with as many examples as rows."""

    clean: Tensor
    """Token ids [R, T], or input embeddings [R, T, D]."""
    position_ids: Tensor
    ids: Tensor
    example_of_row: Tensor


class FewTokens(NamedTuple):
    """Tokens of a small pass that shows where arguments have their rows; fields as in Batch."""

    clean: Tensor
    attention_mask: Tensor
    position_ids: Tensor


def few_tokens(rows: int, device: torch.device) -> FewTokens:
    """Make so many rows of four tokens, one of them padding, so that masks are made."""
    tokens = torch.ones(rows, 4, dtype=torch.long, device=device)
    mask = torch.ones_like(tokens)
    mask[0, -1] = 0
    return FewTokens(tokens, mask, torch.arange(4, device=device).repeat(rows, 1))


def named_arguments(layer: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Name the arguments of a layer behind the hidden state."""
    names = _parameters(type(layer).forward)
    return {**dict(zip(names, args, strict=False)), **kwargs}


@cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)[2:]


def tensors_in(value: Any, key: tuple) -> Iterator[tuple[tuple, Tensor]]:
    """Yield the tensors in nested tuples, lists and dicts with the path to each."""
    if isinstance(value, Tensor):
        yield key, value
    elif isinstance(value, (tuple, list)):
        for index, item in enumerate(value):
            yield from tensors_in(item, (*key, index))
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from tensors_in(item, (*key, name))


def is_known(key: tuple, value: Tensor) -> bool:
    """Whether the dimension of the rows is known by name: key of `ArgumentShapes`."""
    return value.ndim < 2 or (key[1] in _KNOWN and _KNOWN[key[1]](value) is not None)


def note_shapes(shapes: ArgumentShapes, index: int, arguments: Mapping[str, Any]) -> None:
    """Note the shapes of a layer's arguments whose names do not tell where they have rows."""
    for name, value in arguments.items():
        shapes |= {key: tuple(one.shape) for key, one in tensors_in(value, (index, name)) if not is_known(key, one)}


def places_of_rows(two: ArgumentShapes, three: ArgumentShapes) -> dict[tuple, int | None]:
    """Compare the shapes of a pass with 2 rows and of one with 3: the dimension of the rows, None without rows."""
    return {
        key: next((d for d, (a, b) in enumerate(zip(shape, three[key], strict=True)) if 3 * a == 2 * b), None)
        for key, shape in two.items()
        if key in three and len(shape) == len(three[key])
    }


def _likely(value: Tensor, total: int) -> int:
    """Dimension of the rows by sizes alone, for the meta device, on which no passes show it."""
    return 1 if value.ndim == 4 and value.shape[0] % total and value.shape[1] == total else 0


class Division:
    """Divides arguments between the streams of one pass."""

    def __init__(
        self,
        rows: Rows,
        places: Mapping[tuple, int | None],
        other_cache: Callable[[Cache], Cache] | None = None,
    ) -> None:
        """places: as found, for arguments whose names do not tell. other_cache: function of a KV cache that gives that of the
        corrupted rows; without one it is the same."""
        self._rows, self._places, self._other_cache = rows, places, other_cache
        self._returned: dict[int, tuple[Tensor, Tensor]] = {}
        """id of a tensor that a layer returned beside its hidden state -> this of the masked stream, and that of the other."""
        self._shared: dict[int, tuple[Any, dict[str, Any]]] = {}
        """id of a dict that the outer model hands to several layers -> the dict, and that of each stream."""

    def take(self, value: Any, stream: str, key: tuple) -> Any:
        """Select the rows of one stream of an argument. A dict, in which layers may keep state, has one copy a stream."""
        if not self._rows.corrupted:
            return value
        if isinstance(value, Tensor):
            return self._part(value, stream, key)
        if isinstance(value, (tuple, list)):
            parts = [self.take(item, stream, (*key, index)) for index, item in enumerate(value)]
            return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        if isinstance(value, dict):
            if id(value) not in self._shared:
                copies = {
                    one: {k: self.take(v, one, (*key, k)) for k, v in value.items()} for one in self._rows._fields
                }
                self._shared[id(value)] = value, copies
            return self._shared[id(value)][1][stream]
        if isinstance(value, Cache) and self._other_cache is not None and stream == "corrupted":
            return self._other_cache(value)
        return value

    def note_returned(self, masked: Any, corrupted: Any) -> None:
        """Note what a layer returned in both streams: the outer model may hand that of the masked stream to a later layer."""
        if isinstance(masked, (tuple, list)):
            both = zip(tensors_in(masked[1:], ()), tensors_in(corrupted[1:], ()), strict=True)
            self._returned |= {id(own): (own, other) for (_, own), (_, other) in both}

    def _part(self, value: Tensor, stream: str, key: tuple) -> Tensor:
        if id(value) in self._returned:
            return self._returned[id(value)][stream == "corrupted"]
        total = sum(self._rows)
        place = (
            _KNOWN[key[1]](value)
            if is_known(key, value) and value.ndim > 1
            else self._places.get(key, _likely(value, total))
        )
        if value.ndim < 2 or place is None or value.shape[place] % total:
            return value
        each = value.shape[place] // total  # entries of a row: of biases one a head
        start, length = (0, self._rows.masked) if stream == "masked" else self._rows
        return value.narrow(place, start * each, length * each)
