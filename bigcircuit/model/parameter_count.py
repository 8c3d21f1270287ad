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

import torch
from torch import Tensor, nn

from bigcircuit.model.architectures import FUSED, KEYS, LATENT, QUERIES, VALUES
from bigcircuit.model.granularity import ATTENTION, EXPERT, EXPERT_NEURON, LEAVES, MIXER, MLP, SITE_WIDTH
from bigcircuit.model.paths import in_features, inputs_of_mlp, out_features
from bigcircuit.model.sites import FrozenModel, Layer
from bigcircuit.model.zero3 import numel


class ParameterCount(NamedTuple):
    """Number of parameters of the decoder layers: those a circuit keeps, and all."""

    kept: int
    total: int


class SharedParameters(NamedTuple):
    """Parameters of a layer in parts, each kept while any of the neurons that use it is."""

    users: Mapping[str, Tensor]
    """By site, int64 [site width]: number of the part that each neuron uses."""
    size: int
    """Parameters of a part."""

    @property
    def parts(self) -> int:
        """Number of parts."""
        return 1 + max((int(numbers.max()) for numbers in self.users.values()), default=0)


def shared_parameters(layer: Layer, with_expert_neurons: bool = False) -> list[SharedParameters]:
    """List what the neurons of a layer use: together all parameters of the layer, MLP outputs taken as kept.

    with_expert_neurons: whether neurons of experts have masks, in place of whole experts.
    """
    found = [one for site in layer.sites for one in _SHARED[site](layer, with_expert_neurons)]
    everything = sum(numel(p) for p in layer.module.parameters())
    rest = everything - sum(one.size * one.parts for one in found)
    users = {site: numbers for one in found for site, numbers in one.users.items()}
    return [*found, SharedParameters({site: torch.zeros_like(numbers) for site, numbers in users.items()}, rest)]


def count_parameters(frozen: FrozenModel, masks: Mapping[str, Tensor]) -> ParameterCount:
    """Count the parameters that a circuit keeps.

    masks: bool [L, n] by granularity; those of all neurons must be there, of experts those of experts or of their neurons.
    """
    kept = total = 0
    for index, layer in enumerate(frozen.layers):
        for one in shared_parameters(layer, "expert_neuron" in masks):
            used = torch.zeros(one.parts, dtype=torch.bool)
            for site, numbers in one.users.items():
                used[numbers[masks[LEAVES[site]][index, : len(numbers)].cpu()]] = True
            kept += one.size * int(used.sum())
            total += one.size * one.parts
        if "mlp_output" in masks and MLP in layer.sites:
            closed = layer.shape.hidden - int(masks["mlp_output"][index, : layer.shape.hidden].sum())
            kept -= closed * int(masks[LEAVES[MLP]][index, : layer.shape.intermediate].sum())
    return ParameterCount(kept, total)


def _attention(layer: Layer, _: bool) -> Iterator[SharedParameters]:
    shape = layer.shape
    per_group = shape.heads // shape.kv_heads * shape.head_dim
    neurons = torch.arange(shape.heads * shape.head_dim)
    heads, groups = ({ATTENTION: neurons // width} for width in (shape.head_dim, per_group))
    values = {ATTENTION: neurons // per_group * shape.head_dim + neurons % shape.head_dim}
    rows = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    yield from _columns(layer, ATTENTION)
    for name, size, width in _projections(layer.owner(ATTENTION)):
        if name in FUSED and width == rows:
            yield SharedParameters(heads, size // rows * shape.head_dim)
            yield SharedParameters(groups, size // rows * shape.head_dim)
            yield SharedParameters(values, size // rows)
        elif (name in QUERIES or name in LATENT) and width % shape.heads == 0:
            yield SharedParameters(heads, size // shape.heads)
        elif name in KEYS and width % shape.kv_heads == 0:
            yield SharedParameters(groups, size // shape.kv_heads)
        elif name in VALUES and width == shape.kv_heads * shape.head_dim:
            yield SharedParameters(values, size // width)


def _mlp(layer: Layer, _: bool) -> Iterator[SharedParameters]:
    yield from _columns(layer, MLP)
    for module in mlp_inputs(layer):
        yield SharedParameters({MLP: torch.arange(layer.shape.intermediate)}, _size(module) // layer.shape.intermediate)


def _mixer(layer: Layer, _: bool) -> Iterator[SharedParameters]:
    yield from _columns(layer, MIXER)
    inside = sum(numel(p) for p in layer.owner(MIXER).parameters()) - _size(layer.sites[MIXER])
    yield SharedParameters({MIXER: torch.zeros(SITE_WIDTH[MIXER](layer.shape), dtype=torch.long)}, inside)


def _experts(layer: Layer, with_neurons: bool) -> Iterator[SharedParameters]:
    shape, total = layer.shape, sum(numel(p) for p in layer.sites[EXPERT].parameters())
    if with_neurons:
        neurons, share = torch.arange(shape.experts * shape.expert_width), total // shape.experts // shape.expert_width
        yield SharedParameters({EXPERT_NEURON: neurons}, share)
        rest = total // shape.experts - share * shape.expert_width
        yield SharedParameters({EXPERT_NEURON: neurons // shape.expert_width}, rest)
    else:
        yield SharedParameters({EXPERT: torch.arange(shape.experts)}, total // shape.experts)


_SHARED = {ATTENTION: _attention, MLP: _mlp, MIXER: _mixer, EXPERT: _experts}
"""Site -> function of a layer: parameters that nodes of the site use; the flag says whether neurons of experts have masks."""


def _columns(layer: Layer, site: str) -> Iterator[SharedParameters]:
    """List the parameters of an output projection: a column of each neuron, and its bias."""
    projection, neurons = layer.sites[site], torch.arange(SITE_WIDTH[site](layer.shape))
    outputs = out_features(projection)
    yield SharedParameters({site: neurons}, outputs)
    bias = _size(projection) - in_features(projection) * outputs
    yield SharedParameters({site: torch.zeros_like(neurons)}, bias)


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
