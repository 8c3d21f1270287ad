"""Count the parameters of the decoder layers that a circuit needs.

An MLP neuron owns its rows of the input projections (gate and up) and its column of the down projection. A query head owns
its query rows, a key/value head its key rows; a key/value head is kept while any query head of its group is. An attention
neuron owns its column of the output projection; the neuron's value row is kept while any query head of the group reads the
row. With latent attention a head owns its rows of the second projections. A mixer's neuron owns its column of the output
projection. An expert owns its weights, and a neuron of an expert its share of them where neurons have masks. Parameters of a whole
sub-layer (output bias, norms, routers, adapters) are kept while the sub-layer is. Embeddings and the vocabulary projection are
not counted: they are never pruned.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from torch import Tensor, nn

from bigcircuit.model.architectures import FUSED, KEYS, LATENT, QUERIES, VALUES
from bigcircuit.model.granularity import ATTENTION, EXPERT, LEAVES, MIXER, MLP, SITE_WIDTH
from bigcircuit.model.paths import in_features, inputs_of_mlp, out_features
from bigcircuit.model.sites import FrozenModel, Layer
from bigcircuit.model.zero3 import numel


class ParameterCount(NamedTuple):
    """Number of parameters of the decoder layers: those a circuit keeps, and all."""

    kept: int
    total: int


def count_parameters(frozen: FrozenModel, masks: Mapping[str, Tensor]) -> ParameterCount:
    """Count the parameters that a circuit keeps.

    masks: bool [L, n] by granularity; those of all neurons must be there, of experts those of experts or of their neurons.
    """
    kept = total = 0
    for index, layer in enumerate(frozen.layers):
        own = {
            site: masks[LEAVES[site]][index, : SITE_WIDTH[site](layer.shape)]
            for site in SITE_WIDTH
            if LEAVES[site] in masks and SITE_WIDTH[site](layer.shape)
        }
        parts = [_COUNTS[site](layer, own) for site in layer.sites]
        everything = sum(numel(p) for p in layer.module.parameters())
        rest = everything - sum(part.total for part in parts)
        kept += sum(part.kept for part in parts) + rest * any(part.kept for part in parts)
        total += everything
    return ParameterCount(kept, total)


def _attention(layer: Layer, masks: Mapping[str, Tensor]) -> ParameterCount:
    shape = layer.shape
    neurons = masks[ATTENTION].view(shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim)
    heads, groups = int(neurons.any(-1).sum()), int(neurons.flatten(1).any(-1).sum())
    values, rows = int(neurons.any(1).sum()), (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    kept, total = _columns(layer, ATTENTION, int(neurons.sum()))
    for name, size, width in _projections(layer.owner(ATTENTION)):
        if name in FUSED and width == rows:
            kept += size // rows * (shape.head_dim * (heads + groups) + values)
        elif (name in QUERIES or name in LATENT) and width % shape.heads == 0:
            kept += size // shape.heads * heads
        elif name in KEYS and width % shape.kv_heads == 0:
            kept += size // shape.kv_heads * groups
        elif name in VALUES and width == shape.kv_heads * shape.head_dim:
            kept += size // width * values
        else:
            continue
        total += size
    return ParameterCount(kept, total)


def _mlp(layer: Layer, masks: Mapping[str, Tensor]) -> ParameterCount:
    width, hidden, neurons = layer.shape.intermediate, layer.shape.hidden, int(masks[MLP].sum())
    outputs = int(masks["mlp_output"].sum()) if "mlp_output" in masks else hidden
    down = _size(layer.sites[MLP])
    kept, total = neurons * outputs + (down - width * hidden) * bool(neurons), down
    for module in mlp_inputs(layer):
        kept, total = kept + _size(module) // width * neurons, total + _size(module)
    return ParameterCount(kept, total)


def _mixer(layer: Layer, masks: Mapping[str, Tensor]) -> ParameterCount:
    neurons = int(masks[MIXER].sum())
    kept, total = _columns(layer, MIXER, neurons)
    whole = sum(numel(p) for p in layer.owner(MIXER).parameters())
    return ParameterCount(kept + (whole - total) * bool(neurons), whole)


def _experts(layer: Layer, masks: Mapping[str, Tensor]) -> ParameterCount:
    shape, total = layer.shape, sum(numel(p) for p in layer.sites[EXPERT].parameters())
    if "expert_neuron" in masks:
        neurons = masks["expert_neuron"].view(shape.experts, shape.expert_width)
        share = total // shape.experts // shape.expert_width
        rest = total // shape.experts - share * shape.expert_width
        return ParameterCount(share * int(neurons.sum()) + rest * int(neurons.any(-1).sum()), total)
    return ParameterCount(total // shape.experts * int(masks[EXPERT].sum()), total)


_COUNTS = {ATTENTION: _attention, MLP: _mlp, MIXER: _mixer, EXPERT: _experts}
"""Site -> function of a layer and its masks by site: parameters that a node of the site owns, kept and all."""


def _columns(layer: Layer, site: str, neurons: int) -> tuple[int, int]:
    """Count the parameters of an output projection: kept, and all. neurons: how many are kept."""
    projection = layer.sites[site]
    size, columns = _size(projection), in_features(projection) * out_features(projection)
    return neurons * out_features(projection) + (size - columns) * bool(neurons), size


def _projections(owner: nn.Module) -> Iterator[tuple[str, int, int]]:
    """Yield name, parameters and rows of the projections in a module."""
    for name, module in owner.named_children():
        found = getattr(module, "linear", module)  # Moshi
        if in_features(found):
            yield name, _size(found), out_features(found)


def mlp_inputs(layer: Layer) -> list[nn.Module]:
    """List the projections that compute the MLP neurons of a layer: (up,), (gate, up) or the one that computes both."""
    modules = dict(layer.module.named_modules())
    return inputs_of_mlp(modules, next(name for name, module in modules.items() if module is layer.sites[MLP]))


def _size(module: nn.Module) -> int:
    """Count the parameters of a projection without those of its adapter."""
    base = getattr(module, "base_layer", module)
    return sum(numel(p) for p in base.parameters())
