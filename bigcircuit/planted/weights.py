"""Weights of decoder layers node by node: reading them from a Hugging Face model and writing them into a wider model.

Shapes: L layers, G key/value groups, Q query heads a group, d head size, F MLP neurons, D hidden size.
"""

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bigcircuit.errors import UserError
from bigcircuit.model.architectures import FUSED, KEYS, QUERIES, VALUES
from bigcircuit.model.granularity import ATTENTION
from bigcircuit.model.parameter_count import mlp_inputs
from bigcircuit.model.sites import FrozenModel, Layer, find_sites


class LayerWeights(NamedTuple):
    """Weights of one layer: input weights, with the bias as one more column (0 where there is none), and output weights."""

    q: Tensor
    """[G, Q, d, D + 1]"""
    k: Tensor
    """[G, d, D + 1]"""
    v: Tensor
    """[G, d, D + 1]"""
    heads_write: Tensor
    """[G, Q, d, D]"""
    inputs: Tensor
    """[inputs of the MLP (gate and up, or one), F, D + 1]"""
    neurons_write: Tensor
    """[F, D]"""


def read_layers(frozen: FrozenModel) -> list[LayerWeights]:
    """Read the weights of all layers. Raises UserError for architectures to which no heads can be added."""
    _check(frozen)
    return [_read(layer) for layer in frozen.layers]


def _check(frozen: FrozenModel) -> None:
    config = frozen.model.config
    free = (
        len(_qkv_projections(frozen.layers[0])) == 3
        and hasattr(config, "num_key_value_heads")
        and hasattr(config, "intermediate_size")
    )
    if config.model_type != "gpt2" and not free:
        raise UserError(
            f"model type {config.model_type!r} cannot be widened; use GPT-2 or one with separate q, k, v and key/value heads"
        )


def _read(layer: Layer) -> LayerWeights:
    shape = layer.shape
    groups, queries, size = shape.kv_heads, shape.heads // shape.kv_heads, shape.head_dim
    q, k, v = _qkv(layer)
    return LayerWeights(
        q=q.view(groups, queries, size, -1),
        k=k.view(groups, size, -1),
        v=v.view(groups, size, -1),
        heads_write=_matrix(layer.attention).T.reshape(groups, queries, size, -1).clone(),
        inputs=torch.stack([_read_projection(module) for module in mlp_inputs(layer)]),
        neurons_write=_matrix(layer.mlp).T.clone(),
    )


def _qkv_projections(layer: Layer) -> list[Any]:
    """Query, key and value projections of a layer, or the one projection that computes all three."""
    owner = layer.owner(ATTENTION)
    return [getattr(owner, name) for name in (*QUERIES, *KEYS, *VALUES, *FUSED) if hasattr(owner, name)]


def _qkv(layer: Layer) -> tuple[Tensor, ...]:
    rows = [_read_projection(projection) for projection in _qkv_projections(layer)]
    return rows[0].chunk(3) if len(rows) == 1 else tuple(rows)


def _matrix(projection: Any) -> Tensor:
    """View the weights of a linear projection as [out, in]; GPT-2's Conv1D stores the transpose."""
    weight = projection.weight.detach()
    return weight if isinstance(projection, nn.Linear) else weight.T


def _read_projection(projection: Any) -> Tensor:
    """Read weights and bias of a projection as [out, in + 1]."""
    weight = _matrix(projection)
    bias = torch.zeros(len(weight)) if projection.bias is None else projection.bias.detach()
    return torch.cat([weight, bias.unsqueeze(1)], dim=1)


def repeat_hidden(layers: list[LayerWeights], times: int) -> list[LayerWeights]:
    """Adapt layers to a residual stream that holds `times` copies of itself; norms see the same mean and deviation."""

    def read(rows: Tensor) -> Tensor:
        return torch.cat([*[rows[..., :-1] / times] * times, rows[..., -1:]], dim=-1)

    return [
        LayerWeights(
            q=read(layer.q),
            k=read(layer.k),
            v=read(layer.v),
            heads_write=torch.cat([layer.heads_write] * times, dim=-1),
            inputs=read(layer.inputs),
            neurons_write=torch.cat([layer.neurons_write] * times, dim=-1),
        )
        for layer in layers
    ]


@torch.no_grad()
def build_wide_model(model: Any, layers: list[LayerWeights], times: int) -> Any:
    """Make a model like `model` with these layers; other weights are copied, `times` over along the hidden size."""
    from transformers import AutoModelForCausalLM

    wide = (
        AutoModelForCausalLM.from_config(_config(model.config, layers[0], times)).float().eval().requires_grad_(False)
    )
    frozen, target = find_sites(wide), wide.state_dict()
    for name, value in model.state_dict().items():
        if name not in target:
            continue
        if value.shape[-1] * times == target[name].shape[-1]:
            value = torch.cat([value] * times, dim=-1)
        if target[name].shape == value.shape:
            target[name].copy_(value)
    head = wide.get_output_embeddings().weight
    if times > 1:
        head.copy_(torch.cat([model.get_output_embeddings().weight / times] * times, dim=-1))
    for layer, weights in zip(frozen.layers, layers, strict=True):
        _write(layer, weights)
    return wide


def _config(config: Any, weights: LayerWeights, times: int) -> Any:
    config = copy.deepcopy(config)
    groups, queries, size, _ = weights.q.shape
    neurons = weights.inputs.shape[1]
    if config.model_type == "gpt2":
        config.n_head, config.n_embd, config.n_inner = groups, groups * size, neurons
        config.tie_word_embeddings = config.tie_word_embeddings and times == 1
    else:
        config.num_attention_heads, config.num_key_value_heads = groups * queries, groups
        config.head_dim, config.intermediate_size = size, neurons
    return config


def _write(layer: Layer, weights: LayerWeights) -> None:
    qkv = [rows.flatten(0, -2) for rows in (weights.q, weights.k, weights.v)]
    projections = _qkv_projections(layer)
    for projection, rows in zip(projections, [torch.cat(qkv)] if len(projections) == 1 else qkv, strict=True):
        _write_projection(projection, rows)
    for projection, rows in zip(mlp_inputs(layer), weights.inputs, strict=True):
        _write_projection(projection, rows)
    _matrix(layer.attention).copy_(weights.heads_write.flatten(0, 2).T)
    _matrix(layer.mlp).copy_(weights.neurons_write.T)


def _write_projection(projection: Any, rows: Tensor) -> None:
    _matrix(projection).copy_(rows[:, :-1])
    if projection.bias is not None:
        projection.bias.copy_(rows[:, -1])
