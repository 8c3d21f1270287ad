"""What the corrupted run leaves behind for masked passes over the suffix: site inputs, and keys and values of the prefix.

Attention is causal and embeddings are not masked, so tokens before the first difference of a pair have the same activations in
the corrupted run and in every masked run under interchange ablation, whatever the masks. A masked pass runs the other tokens
alone, against the keys and values that the corrupted run had for these.

Shapes: P members, R rows of a batch, T tokens, c tokens of the prefix, n width of a site, H key/value heads, d width of a head.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import Cache

KeysAndValues = tuple[Tensor, Tensor]
"""Keys and values of a layer, [R, H, tokens, d] each."""


class Corrupted(Protocol):
    """Activations of the corrupted run of a batch."""

    @property
    def cut(self) -> int:
        """c: columns of the batch that masked passes leave out."""

    def site(self, layer: int, site: str) -> Tensor:
        """Return what closed nodes output behind the cut, [R, T - c, n]; anything where a row is padded."""

    def prefix(self, layer: int) -> KeysAndValues:
        """Return keys and values of the columns before the cut."""


class RecordedBatch(NamedTuple):
    """Activations of the corrupted run of one batch, as they were recorded."""

    cut: int
    sites: dict[tuple[int, str], Tensor]
    """(layer, site) -> [R, T - c, n]."""
    keys_and_values: dict[int, KeysAndValues]

    def site(self, layer: int, site: str) -> Tensor:
        """Return the recorded activations of a site."""
        return self.sites[layer, site]

    def prefix(self, layer: int) -> KeysAndValues:
        """Return the recorded keys and values of the prefix."""
        return self.keys_and_values[layer]

    def to(self, device: torch.device | str) -> "RecordedBatch":
        """Return a copy on another device."""
        sites = {key: values.to(device) for key, values in self.sites.items()}
        return RecordedBatch(
            self.cut, sites, {layer: (k.to(device), v.to(device)) for layer, (k, v) in self.keys_and_values.items()}
        )

    def tensors(self) -> list[Tensor]:
        """List all that is recorded."""
        return [*self.sites.values(), *(values for pair in self.keys_and_values.values() for values in pair)]


class RecordingCache(Cache):
    """Cache of a plain pass that keeps keys and values of the first columns, and changes nothing."""

    def __init__(self, columns: int) -> None:
        super().__init__(layers=[])
        self.columns = columns
        self.found: dict[int, KeysAndValues] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> KeysAndValues:
        """Keep copies of the first columns; returns what it gets."""
        self.found[layer_idx] = (key_states[:, :, : self.columns].clone(), value_states[:, :, : self.columns].clone())
        return key_states, value_states


class PrefixCache(Cache):
    """Cache of a masked pass: the prefix's keys and values before those of the suffix, which it does not keep.

    So a layer can run again when it is recomputed.
    """

    def __init__(self, corrupted: Corrupted) -> None:
        super().__init__(layers=[])
        self._corrupted = corrupted

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> KeysAndValues:
        """Return keys and values of all columns, [P * R, H, T, d]."""
        keys, values = self._corrupted.prefix(layer_idx)
        members = len(key_states) // len(keys)
        return (
            torch.cat([keys.repeat(members, 1, 1, 1), key_states], dim=2),
            torch.cat([values.repeat(members, 1, 1, 1), value_states], dim=2),
        )

    def get_seq_length(self, layer_idx: int = 0) -> int:  # noqa: ARG002 (all layers have the same)
        """Return the number of columns before the cut."""
        return self._corrupted.cut

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:  # noqa: ARG002
        """Return the number of keys and the column of the first."""
        return self._corrupted.cut + query_length, 0
