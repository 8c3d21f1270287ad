"""Tensors of a cut model from those of its base: which rows and columns each parameter of a layer takes.

Shapes: H query heads, K key/value heads, d head width, F MLP neurons, D hidden size; primed ones are of the written layer.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from bigcircuit.export.cut import PADDING, LayerCut
from bigcircuit.model.granularity import ATTENTION, MLP, MLP_OUTPUT, LayerShape
from bigcircuit.model.paths import ModulePaths

GROUPED_QKV = ("falcon", "gpt_neox")
"""Model types whose one projection for queries, keys and values has them key/value group by group: its queries, key and value.
Others have all queries, then all keys, then all values."""
_HEAD_NORM = re.compile(r"\.?([qk])_(?:layer)?norm(?:\.norms\.(\d+))?$")
"""Norms of queries or keys, with the head where each head has its own module."""
ReadBase = Callable[[str], Tensor | None]
"""Name of a parameter within the base layer -> the tensor; None if the base layer has no such parameter."""


class Part(NamedTuple):
    """What a parameter of a layer is to the heads and neurons of the layer."""

    kind: str
    """`query`, `key`, `value`, `qkv`, `attention_output`, `mlp_input`, `mlp_output`, `query_norm`, `key_norm`."""
    axis: int
    """Dimension along which heads or neurons are."""


class LayerParts:
    """Finds the part of every parameter of a layer by its name and shape."""

    def __init__(self, model_type: str, row: ModulePaths, shape: LayerShape, transposed: bool) -> None:
        """shape: widths of the base layer; transposed: whether weights are [in, out], as in GPT-2's Conv1D."""
        self._row, self._shape, self._transposed = row, shape, transposed
        self._grouped = model_type in GROUPED_QKV
        self._fused_mlp = len(row.mlp_inputs) == 1

    def part(self, name: str, size: torch.Size) -> Part | None:
        """Find the part of a parameter; None for what every layer has whole. size: its shape in the base layer."""
        module, _, leaf = name.rpartition(".")
        inputs = 0 if len(size) == 1 or not self._transposed else 1
        row = self._row
        if module in (row.attention, row.mlp):
            kind = "attention_output" if module == row.attention else "mlp_output"
            return Part(kind, 0 if self._transposed else 1) if leaf == "weight" else None
        if module in row.qkv:
            kinds = ("query", "key", "value") if len(row.qkv) == 3 else ("qkv",)
            return Part(kinds[row.qkv.index(module)], inputs)
        if module in row.mlp_inputs:
            return Part("mlp_input", inputs)
        found = _HEAD_NORM.search(module)
        if found and found[2] is None and size[0] in (self._shape.heads, self._shape.kv_heads) and len(size) == 2:
            return Part("query_norm" if found[1] == "q" else "key_norm", 0)
        return None

    def is_whole(self, name: str, size: torch.Size) -> bool:
        """Whether every layer has a parameter as it is in the base. size: its shape in the base layer."""
        module, _, leaf = name.rpartition(".")
        return not (leaf == "bias" and module in (self._row.attention, self._row.mlp)) and self.part(name, size) is None

    def mixes_heads(self, name: str, size: torch.Size) -> bool:
        """Whether a parameter is of a norm over all heads together: without one head the others would be others."""
        found = _HEAD_NORM.search(name.rpartition(".")[0])
        return found is not None and size[-1] != self._shape.head_dim

    def base_name(self, name: str, cut: LayerCut) -> str:
        """Name within the base layer of a parameter of the written layer: norms of their own move with their heads."""
        found = _HEAD_NORM.search(name.rpartition(".")[0])
        if found is None or found[2] is None:
            return name
        source = (cut.heads if found[1] == "q" else cut.kv_heads)[int(found[2])]
        return name.replace(f".norms.{found[2]}.", f".norms.{max(int(source), 0)}.")

    def places(self, part: Part, cut: LayerCut, size: int) -> Tensor:
        """Where in the base tensor the rows or columns of the written one are, int64, PADDING for zeros.

        size: that of the base tensor along the part's axis.
        """
        heads, kv, shape = cut.heads, cut.kv_heads, self._shape
        if part.kind in ("query", "attention_output"):
            return _spread(heads, shape.head_dim)
        if part.kind in ("key", "value"):
            return _spread(kv, shape.head_dim)
        if part.kind in ("query_norm", "key_norm"):
            return heads if part.kind == "query_norm" else kv
        if part.kind == "qkv":
            return _spread(self._grouped_heads(cut) if self._grouped else self._listed_heads(cut), shape.head_dim)
        if part.kind == "mlp_input" and self._fused_mlp and size == 2 * shape.intermediate:
            return torch.cat([cut.neurons, _moved(cut.neurons, shape.intermediate)])
        return cut.neurons

    def size(self, name: str, cut: LayerCut, size: torch.Size) -> torch.Size:
        """Shape that a parameter has in the written layer. size: that in the base layer."""
        part = self.part(name, size)
        if part is None:
            return size
        return torch.Size([*size[: part.axis], len(self.places(part, cut, size[part.axis])), *size[part.axis + 1 :]])

    def _listed_heads(self, cut: LayerCut) -> Tensor:
        keys = _moved(cut.kv_heads, self._shape.heads)
        return torch.cat([cut.heads, keys, _moved(keys, self._shape.kv_heads)])

    def _grouped_heads(self, cut: LayerCut) -> Tensor:
        size = self._shape.heads // self._shape.kv_heads
        queries = torch.where(cut.heads == PADDING, PADDING, cut.heads // size * (size + 2) + cut.heads % size)
        keys = torch.where(cut.kv_heads == PADDING, PADDING, cut.kv_heads * (size + 2) + size)
        groups = [queries.view(len(keys), -1), keys.unsqueeze(1), _moved(keys, 1).unsqueeze(1)]
        return torch.cat(groups, dim=1).flatten()

    def written(self, name: str, cut: LayerCut, read: ReadBase) -> Tensor | None:
        """Make a parameter of the written layer; None for a new bias that stays zero. read: reads the base layer's parameters."""
        module, _, leaf = name.rpartition(".")
        if leaf == "bias" and module in (self._row.attention, self._row.mlp):
            return self._bias(module, cut, read)
        base = read(self.base_name(name, cut))
        if base is None:
            return None
        part = self.part(name, base.shape)
        if part is None:
            return base
        places = self.places(part, cut, base.shape[part.axis])
        zeros = places == PADDING
        site = {"attention_output": ATTENTION, "mlp_output": MLP}.get(part.kind)
        if site is not None:
            zeros = zeros | ~cut.opened[site][places.clamp(min=0)]
        made = _selected(base, places, part.axis)
        made.index_fill_(part.axis, zeros.nonzero().flatten(), 0)
        if part.kind == "mlp_output" and MLP_OUTPUT in cut.opened:
            made.index_fill_(1 - part.axis, (~cut.opened[MLP_OUTPUT]).nonzero().flatten(), 0)
        return made

    def _bias(self, module: str, cut: LayerCut, read: ReadBase) -> Tensor | None:
        """Make the bias of an output projection: its own, and what the constants of closed neurons add; float32 where they do."""
        base, closed = (
            read(f"{module}.bias"),
            cut.closed_inputs(MLP if module == self._row.mlp else ATTENTION, self._transposed),
        )
        if base is None and not closed.needs_bias:
            return None
        weight = read(f"{module}.weight")
        assert weight is not None, f"{module}.weight is not in the base"
        return closed.bias(base, weight)


def _spread(heads: Tensor, head_dim: int) -> Tensor:
    """Places of the neurons of each head, [n] -> [n d]."""
    places = heads.unsqueeze(1) * head_dim + torch.arange(head_dim)
    return torch.where(heads.unsqueeze(1) == PADDING, PADDING, places).flatten()


def _moved(places: Tensor, by: int) -> Tensor:
    return torch.where(places == PADDING, PADDING, places + by)


def _selected(tensor: Tensor, places: Tensor, axis: int) -> Tensor:
    """Copy rows or columns; those in the places of PADDING are of any value."""
    in_place = torch.arange(tensor.shape[axis])
    if len(places) == len(in_place) and bool(((places == in_place) | (places == PADDING)).all()):
        return tensor.clone()
    return tensor.index_select(axis, places.clamp(min=0))
