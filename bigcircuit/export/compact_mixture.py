"""Plan of a compact mixture of experts: the experts that are kept, all other closed nodes zero in their places."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigcircuit.errors import UserError
from bigcircuit.export.closed_nodes import ClosedNodes
from bigcircuit.export.compact_model import register_model
from bigcircuit.export.expert_cut import ExpertCut, expert_cuts
from bigcircuit.export.folder import config_json, write_folder
from bigcircuit.export.request import ExportRequest, PreparedExport
from bigcircuit.export.source import SourceWeights
from bigcircuit.export.writer import Planned
from bigcircuit.model.granularity import EXPERT


def plan_mixture(request: ExportRequest) -> PreparedExport:
    """Plan the folder. Raises UserError for experts of a form of their own, and for constants, which have no biases there."""
    from transformers import AutoModelForCausalLM

    base, hf_config = request.base, request.hf_config
    subject = f"--format compact: {hf_config.model_type} ({base.architecture.kind})"
    cuts = expert_cuts(base, request.masks, subject, request.multiple_of)
    closed = ClosedNodes(base, request.masks, request.ablation, f"model.path {request.model.config.path}")
    if closed.new_biases:
        raise UserError(f"{subject} has projections without the biases that constants need; use --ablation zero")
    sizes = [{} if cut is None else {"experts": cut.kept, "expert_neurons": int(cut.neurons.shape[1])} for cut in cuts]
    config = register_model(hf_config.model_type)(**hf_config.to_dict(), layer_sizes=sizes)
    config._attn_implementation = hf_config._attn_implementation
    with torch.device("meta"):
        written = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    stored = SourceWeights(request.model.config, base.model)

    def write(folder: Path, source: SourceWeights, advance: Callable[[int], None]) -> None:
        content = config_json(written.config, type(written).__name__, source.dtype)
        planned = list(_planned(request, written, closed, cuts, source))
        write_folder(folder, planned, content, request.beside, advance)

    parameters = sum(parameter.numel() for parameter in written.parameters())
    held = [cut for cut in cuts if cut is not None]
    experts, width = sum(len(cut.kept) for cut in held), [int(cut.neurons.shape[1]) for cut in held]
    whole = [shape for shape in base.shapes if shape.experts]
    return PreparedExport(
        write=write,
        bytes=parameters * stored.dtype.itemsize,
        parameters=parameters,
        sizes=[
            f"{experts} of {sum(shape.experts for shape in whole)} experts",
            f"{min(width)} to {max(width)} of {whole[0].expert_width} neurons of each",
        ],
        notes=["heads, MLP neurons and mixers that are closed are zeros in their places; routers are whole"],
    )


def _planned(
    request: ExportRequest, written: Any, closed: ClosedNodes, cuts: list[ExpertCut | None], source: SourceWeights
) -> Iterator[Planned]:
    """Plan the tensors by their names in the model: those of experts as one parameter each."""
    makers: dict[str, Callable[[], Tensor]] = {}
    names = {id(parameter): name for name, parameter in request.base.model.named_parameters()}
    for layer, cut in zip(request.base.layers, cuts, strict=True):
        if cut is not None:
            module: Any = layer.sites[EXPERT]
            for inside, parameter in module.named_parameters():
                name = names[id(parameter)]
                makers[name] = partial(_cut, cut, module, inside, source, name)
    state = written.state_dict(keep_vars=True)
    for name in {id(value): name for name, value in reversed(state.items())}.values():
        dtype = source.stored_dtype(name)
        if name in makers:
            make, piece = makers[name], None
        elif name in closed.edits:
            make, piece, dtype = partial(closed.edits[name], source), None, closed.dtype(name, dtype)
        elif source.holds(name):
            make, piece = partial(source.whole, name), source.whole_piece(name, dtype)
        else:
            continue
        yield Planned(name, tuple(state[name].shape), dtype, make, piece)


def _cut(cut: ExpertCut, module: Any, inside: str, source: SourceWeights, name: str) -> Tensor:
    return cut.written(module, inside, source.whole(name))
