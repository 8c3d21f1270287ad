"""Plan of an export that is a Hugging Face folder."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bigcircuit.errors import UserError
from bigcircuit.export.cut import LayerCut
from bigcircuit.export.folder import CutTensors, config_json, write_folder
from bigcircuit.export.request import ExportRequest, PreparedExport
from bigcircuit.export.source import SourceWeights
from bigcircuit.export.stock import bias_flags
from bigcircuit.model.sites import FrozenModel


def plan_folder(
    request: ExportRequest, written: FrozenModel, cuts: Sequence[LayerCut], notes: Sequence[str], **settings: Any
) -> PreparedExport:
    """Plan a folder. written: the model of the export, on the meta device; settings: further content of config.json.

    Raises UserError for a class with parameters that are not known to belong to heads or neurons.
    """
    stored = SourceWeights(request.model.config, request.base.model)
    if name := CutTensors(request.base, written, cuts, stored).unlike():
        raise UserError(
            f"{request.hf_config.model_type}: {name} depends on heads or MLP neurons in a way that is not known, so layers are not "
            "cut; use --format zeroed"
        )

    def write(folder: Path, source: SourceWeights, advance: Callable[[int], None]) -> None:
        tensors = CutTensors(request.base, written, cuts, source)
        content = config_json(written.model.config, type(written.model).__name__, source.dtype, **settings)
        write_folder(folder, tensors.planned(), content, request.beside, advance)

    parameters = sum(parameter.numel() for parameter in written.model.parameters())
    return PreparedExport(
        write=write,
        bytes=parameters * stored.dtype.itemsize,
        parameters=parameters,
        sizes=written_sizes(cuts, len(request.base.layers)),
        notes=notes,
    )


def bias_settings(request: ExportRequest, name: str, biased: tuple[bool, bool]) -> dict[str, bool]:
    """Find the settings under which a stock class holds the constants of closed nodes as biases.

    name: of the format; biased: whether outputs of attention and of MLPs need one. Raises UserError for a class without.
    """
    flags = bias_flags(request.hf_config, biased)
    if flags is None:
        raise UserError(
            f"--format {name}: closed nodes output constants under {request.ablation.name} ablation, and in "
            f"{request.hf_config.model_type} a projection that writes them has no bias; use --format compact, or --ablation zero"
        )
    return flags


def written_sizes(cuts: Sequence[LayerCut], layers: int) -> list[str]:
    """Describe the sizes of a written model. layers: of the base."""
    shapes = [cut.written_shape for cut in cuts]
    found = []
    for what, of in (
        ("query heads", lambda shape: shape.heads),
        ("key/value heads", lambda shape: shape.kv_heads),
        ("MLP neurons", lambda shape: shape.intermediate),
    ):
        counts, base = [of(shape) for shape in shapes], of(cuts[0].shape)
        low, high = min(counts), max(counts)
        found.append(f"{low if low == high else f'{low} to {high}'} of {base} {what}")
    return [f"{len(cuts)} of {layers} layers", *found]
