"""Cut all layers of a model to the same sizes, the smallest that a stock class of transformers takes."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bigcircuit.errors import UserError
from bigcircuit.export.cut import (
    HeadArrangement,
    LayerCut,
    arranged,
    arrangements,
    narrowed,
    without_closed_blocks,
)
from bigcircuit.export.request import ExportRequest
from bigcircuit.export.stock import has_projection_biases, layers_can_go, sized_config
from bigcircuit.model.granularity import MLP
from bigcircuit.model.sites import FrozenModel


class UniformCut(NamedTuple):
    """A model of equal layers, on the meta device, and the cut of each layer."""

    written: FrozenModel
    cuts: list[LayerCut]
    notes: list[str]


def uniform_cut(request: ExportRequest, flags: Mapping[str, bool], only: str | None = None) -> UniformCut:
    """Find the smallest sizes.

    flags: settings that give projections the biases that constants need; only: the one model type to write. Raises UserError for a
    class whose sizes are not settings.
    """
    hf_config, shape = request.hf_config, request.base.shapes[0]
    cuts, notes = request.cuts, []
    if layers_can_go(hf_config):
        cuts = without_closed_blocks(cuts, projection_biases=has_projection_biases(request.base))
    layers, written = [cut.layer for cut in cuts], None
    width = request.padded_width(max(int(cut.opened[MLP].sum()) for cut in cuts))
    if request.fixed_heads is None:
        for heads in arrangements([cut.groups() for cut in cuts], shape):
            written = sized_config(hf_config, shape, heads=heads, mlp=width, layers=layers, flags=flags, only=only)
            if written is not None:
                cuts = [narrowed(arranged(cut, heads), width) for cut in cuts]
                notes += _head_notes(cuts, heads)
                break
            if not hasattr(hf_config, "head_dim") and heads.heads != shape.heads:
                break  # the others are refused as well
    if written is None:
        why = request.fixed_heads or "its class derives the head width from their number"
        if any(cut.shape.heads > sum(map(len, cut.groups())) for cut in cuts):
            notes.append(
                f"{hf_config.model_type}: closed heads stay, as zeros, because {why}; --format compact removes them where it can"
            )
        written = sized_config(hf_config, shape, mlp=width, layers=layers, flags=flags, only=only)
        cuts = [narrowed(cut, width) for cut in cuts]
    if written is None:
        raise UserError(
            f"{hf_config.model_type}: its config takes no other MLP width or number of layers; use --format compact or zeroed"
        )
    if only is None and written.model.config.model_type != hf_config.model_type:
        notes.append(
            f"written as {written.model.config.model_type}, which has the same tensors: {hf_config.model_type}'s config refuses "
            f"{written.shapes[0].heads} heads at hidden size {shape.hidden}"
        )
    return UniformCut(written, cuts, notes)


def _head_notes(cuts: Sequence[LayerCut], heads: HeadArrangement) -> list[str]:
    """Say how much of the written heads is padding, and which key/value heads are written twice."""
    notes = []
    padding = sum(int((cut.heads < 0).sum()) for cut in cuts)
    if padding:
        notes.append(
            f"{padding} of {heads.heads * len(cuts)} query heads are padding, because layers keep different numbers"
        )
    twice = sum(len(kept) - len(set(kept)) for cut in cuts if (kept := [k for k in cut.kv_heads.tolist() if k >= 0]))
    if twice:
        notes.append(
            f"{twice} key/value heads are written twice, so that all groups have {heads.per_group} query heads"
        )
    return notes
