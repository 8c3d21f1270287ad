"""Plan of an export of the base model's shapes: its files, with zeros in place of closed nodes.

Tensors that the circuit does not change are copied by the system, in the layout and dtype that they are stored in.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigcircuit.errors import UserError
from bigcircuit.export.closed_nodes import ClosedNodes
from bigcircuit.export.cut import PADDING
from bigcircuit.export.folder import config_json, write_folder
from bigcircuit.export.folder_plan import bias_settings
from bigcircuit.export.request import ExportRequest, PreparedExport
from bigcircuit.export.source import SourceWeights
from bigcircuit.export.stock import changed_config, skeleton_of
from bigcircuit.export.tensors import LayerParts
from bigcircuit.export.writer import Planned
from bigcircuit.gates.discretise import count
from bigcircuit.model.granularity import ATTENTION, LEAVES, MLP, NODE_NAMES, has_masks, node_counts


def plan_zeroed(request: ExportRequest) -> PreparedExport:
    """Plan the export. Raises UserError where constants need a bias that the model's class has not, and for shared weights."""
    base = request.base.model
    closed = ClosedNodes(request.base, request.masks, request.ablation, f"model.path {request.model.config.path}")
    if request.has_rows_of_nodes:
        _close_rows(request, closed)
    flags = _bias_flags(request, closed)
    written = skeleton_of(changed_config(request.hf_config, flags)).model if flags else base
    stored = SourceWeights(request.model.config, base)

    def write(folder: Path, source: SourceWeights, advance: Callable[[int], None]) -> None:
        config = config_json(written.config, type(written).__name__, source.dtype)
        write_folder(folder, list(_planned(closed, source, base, written)), config, request.beside, advance)

    return PreparedExport(
        write=write,
        bytes=sum(tensor.numel() * tensor.dtype.itemsize for tensor in stored.stored.values()),
        parameters=sum(parameter.numel() for parameter in written.parameters()),
        sizes=list(_kept(request)),
        notes=["this export is as large and as slow as the base model; --format uniform or compact makes it smaller"],
    )


def _close_rows(request: ExportRequest, closed: ClosedNodes) -> None:
    """Make zero what computes closed heads and MLP neurons: keys and values where their whole group is closed.

    Their columns of the output projections are zero already, so that no output depends on it.
    """
    for layer, cut in zip(request.base.layers, request.cuts, strict=True):
        parts = LayerParts(
            request.hf_config.model_type, request.base.paths, layer.shape, hasattr(layer.attention, "nx")
        )
        for name, parameter in layer.module.named_parameters():
            part = parts.part(name, parameter.shape)
            if part is not None and part.kind in ("query", "key", "value", "qkv", "mlp_input"):
                places = parts.places(part, cut, parameter.shape[part.axis])
                closed.close_places(parameter, part.axis, places == PADDING)


def _bias_flags(request: ExportRequest, closed: ClosedNodes) -> dict[str, bool]:
    """Find the settings that give projections the biases that constants need. Raises UserError for a class without them."""
    sites = set(closed.new_biases.values())
    if not sites:
        return {}
    if request.is_dense:
        return bias_settings(request, "zeroed", (ATTENTION in sites, MLP in sites))
    path = next(iter(closed.new_biases)).removesuffix(".bias")
    raise UserError(
        f"--format zeroed: closed nodes output constants under {request.ablation.name} ablation, and {path} has no bias; use "
        "--ablation zero"
    )


def _kept(request: ExportRequest) -> Iterator[str]:
    """Say how many of the smallest nodes of each kind are kept."""
    kept, nodes = count(request.masks), node_counts(request.base.shapes, request.masks)
    for site, name in LEAVES.items():
        if name in request.masks and has_masks(site, request.masks) and nodes[name]:
            yield f"{kept[name]} of {nodes[name]} {NODE_NAMES[name]} kept"


def _planned(closed: ClosedNodes, source: SourceWeights, base: Any, written: Any) -> Iterator[Planned]:
    """Plan the tensors of the files, and new biases."""
    state = base.state_dict(keep_vars=True)
    names = {id(tensor): name for name, tensor in reversed(state.items())}
    if source.has_files:
        yield from _from_files(closed, source, state)
    else:
        for name in names.values():
            make = partial(closed.edits[name], source) if name in closed.edits else partial(source.whole, name)
            yield Planned(name, tuple(state[name].shape), closed.dtype(name, source.dtype), make)
    for name, parameter in written.named_parameters():
        if name not in state:
            make = (
                partial(closed.edits[name], source) if name in closed.edits else partial(torch.zeros, parameter.shape)
            )
            yield Planned(name, tuple(parameter.shape), closed.dtype(name, source.dtype), make)


def _from_files(closed: ClosedNodes, source: SourceWeights, state: Any) -> Iterator[Planned]:
    layout, divided = source.layout, _Divided(closed, source)
    changed = {member: name for name in closed.edits if name in layout for member in layout.members(name)}
    for stored, tensor in source.stored.items():
        if layout.is_repeated(stored):
            continue
        target = layout.plain.get(stored)
        # Stored names as the base has them where they are not those of the model, for other readers of the files.
        name = stored if layout.is_converted or target is None or target not in state else target
        if stored not in changed:
            read = partial(source.read_stored, stored)
            yield Planned(name, tuple(tensor.shape), tensor.dtype, read, source.piece(stored))
        elif stored in layout.plain:
            make = partial(closed.edits[changed[stored]], source)
            yield Planned(name, tuple(tensor.shape), closed.dtype(changed[stored], tensor.dtype), make)
        else:
            yield Planned(name, tuple(tensor.shape), tensor.dtype, partial(divided.make, changed[stored], stored))


class _Divided:
    """Makes the stored parts of parameters that are joined when a model is loaded; a parameter is held until all are taken."""

    def __init__(self, closed: ClosedNodes, source: SourceWeights) -> None:
        self._closed, self._source = closed, source
        self._held: dict[str, dict[str, Tensor]] = {}

    def make(self, name: str, stored: str) -> Tensor:
        """Make a stored part of a parameter."""
        if name not in self._held:
            value = self._closed.edits[name](self._source)
            self._held[name] = self._source.layout.as_stored(name, value)
        part = self._held[name].pop(stored)
        if not self._held[name]:
            del self._held[name]
        return part
