"""Cut every layer of a model to what the circuit keeps there."""

import torch

from bigcircuit.errors import UserError
from bigcircuit.export.compact_model import register_model, sizes_of
from bigcircuit.export.cut import LayerCut, arranged, arrangements, narrowed, without_closed_blocks
from bigcircuit.export.folder_plan import plan_folder
from bigcircuit.export.request import ExportRequest, PreparedExport
from bigcircuit.export.stock import has_projection_biases, layers_can_go, sized_config
from bigcircuit.model.granularity import ATTENTION, MLP
from bigcircuit.model.sites import FrozenModel, find_sites


def plan_compact(request: ExportRequest) -> PreparedExport:
    """Plan a folder with layers of their own sizes."""
    hf_config, base, cuts = request.hf_config, request.base, request.cuts
    if layers_can_go(hf_config):
        cuts = without_closed_blocks(cuts, projection_biases=has_projection_biases(base))
    smaller = sized_config(hf_config, base.shapes[0], layers=[cut.layer for cut in cuts])
    if smaller is None:
        raise UserError(f"{hf_config.model_type}: its config takes no other number of layers; use --format zeroed")
    cuts = [_smallest(cut, request) for cut in cuts]
    sizes = [
        sizes_of(cut, closed_attention=_closed(base, cut, ATTENTION), closed_mlp=_closed(base, cut, MLP))
        for cut in cuts
    ]
    written = _skeleton(smaller, sizes)
    notes = []
    if request.fixed_heads and any(len(cut.heads) > sum(map(len, cut.groups())) > 0 for cut in cuts):
        notes.append(
            f"{hf_config.model_type}: closed heads stay where others of the layer are kept, because {request.fixed_heads}"
        )
    return plan_folder(request, written, cuts, notes)


def _smallest(cut: LayerCut, request: ExportRequest) -> LayerCut:
    if request.fixed_heads is None:
        cut = arranged(cut, next(arrangements([cut.groups()], cut.shape)))
    return narrowed(cut, request.padded_width(int(cut.opened[MLP].sum())))


def _closed(base: FrozenModel, cut: LayerCut, site: str) -> bool:
    """Whether a constant takes the place of a sub-layer. A projection that is a module of the layer itself keeps a neuron."""
    path = base.paths.attention if site == ATTENTION else base.paths.mlp
    return cut.is_closed(site) and "." in path


def _skeleton(smaller: FrozenModel, sizes: list[dict[str, int | bool]]) -> FrozenModel:
    """Build the compact model on the meta device."""
    from transformers import AutoModelForCausalLM

    config_class = register_model(smaller.model.config.model_type)
    config = config_class(**smaller.model.config.to_dict(), layer_sizes=sizes)
    config._attn_implementation = smaller.model.config._attn_implementation
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return FrozenModel(
        model,
        smaller.architecture,
        smaller.path,
        find_sites(smaller.model).layers,
        model.get_output_embeddings(),
        smaller.device,
    )
