"""Count the parameters of the decoder layers that a circuit needs.

An MLP neuron owns its rows of the input projections (gate and up) and its column of the down projection. A query head owns
its query rows, a key/value head its key rows; a key/value head is kept while any query head of its group is. An attention
neuron owns its column of the output projection; the neuron's value row is kept while any query head of the group reads the
row. Parameters of a whole sub-layer (output bias, norms, adapters) are kept while the sub-layer is. Embeddings and the
vocabulary projection are not counted: they are never pruned.
"""

from collections.abc import Mapping
from operator import attrgetter
from typing import NamedTuple

from torch import Tensor, nn

from bigcircuit.model.sites import FrozenModel, Layer
from bigcircuit.model.zero3 import numel


class ParameterCount(NamedTuple):
    """Number of parameters of the decoder layers: those a circuit keeps, and all."""

    kept: int
    total: int


def count_parameters(frozen: FrozenModel, masks: Mapping[str, Tensor]) -> ParameterCount:
    """Count the parameters that a circuit keeps.

    masks: bool [L, n] by granularity; both neuron granularities must be there.
    """
    kept = total = 0
    for index, layer in enumerate(frozen.layers):
        shape = layer.shape
        neurons = masks["attention_neuron"][index, : shape.heads * shape.head_dim].view(
            shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim
        )
        mlp = masks["mlp_neuron"][index, : shape.intermediate]
        outputs = int(masks["mlp_output"][index].sum()) if "mlp_output" in masks else shape.hidden
        costs = _costs(frozen, layer)
        kept += int(neurons.any(-1).sum()) * shape.head_dim * costs.attention_row  # query rows
        kept += int(neurons.flatten(1).any(-1).sum()) * shape.head_dim * costs.attention_row  # key rows
        kept += (
            int(neurons.any(1).sum()) * costs.attention_row + int(neurons.sum()) * shape.hidden
        )  # value rows, outputs
        kept += int(mlp.sum()) * (costs.mlp_row + outputs)
        kept += costs.attention_rest * bool(neurons.any()) + costs.mlp_rest * bool(mlp.any())
        kept += costs.layer_rest * bool(neurons.any() or mlp.any())
        total += sum(numel(p) for p in layer.module.parameters())
    return ParameterCount(kept, total)


class _Costs(NamedTuple):
    """Number of parameters in one layer, by the node that owns them."""

    attention_row: int
    """In one row of a query, key or value projection, with its bias."""
    mlp_row: int
    """In one neuron's rows of all input projections, with their biases."""
    attention_rest: int
    """In what belongs to the whole attention sub-layer."""
    mlp_rest: int
    """In what belongs to the whole MLP sub-layer."""
    layer_rest: int
    """In what belongs to the whole layer."""


def _costs(frozen: FrozenModel, layer: Layer) -> _Costs:
    row, shape = frozen.architecture, layer.shape
    qkv = sum(_size(_child(layer.module, name)) for name in row.qkv)
    inputs = sum(_size(_child(layer.module, name)) for name in row.mlp_inputs)
    attention = _size(_child(layer.module, row.attention)) + qkv
    mlp = _size(_child(layer.module, row.mlp)) + inputs
    rows = (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    attention_rest = attention - qkv - shape.heads * shape.head_dim * shape.hidden
    mlp_rest = mlp - inputs - shape.intermediate * shape.hidden
    everything = sum(numel(p) for p in layer.module.parameters())
    return _Costs(qkv // rows, inputs // shape.intermediate, attention_rest, mlp_rest, everything - attention - mlp)


def _child(module: nn.Module, path: str) -> nn.Module:
    return attrgetter(path)(module)


def _size(module: nn.Module) -> int:
    """Count the parameters of a projection without those of its adapter."""
    base = getattr(module, "base_layer", module)
    return sum(numel(p) for p in base.parameters())
