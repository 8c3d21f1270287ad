"""Model classes of compact models: the base's own class, whose layers are resized after they are built.

No code of a model is copied: the modules of the base run with smaller weights, and an attention without heads is replaced by what
its closed heads add.
"""

import copy
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from bigcircuit.errors import UserError
from bigcircuit.export.compact_config import compact_config_class
from bigcircuit.export.cut import LayerCut
from bigcircuit.export.expert_cut import resize_experts
from bigcircuit.export.tensors import LayerParts
from bigcircuit.model.granularity import EXPERT, LayerShape
from bigcircuit.model.sites import find_sites

_COUNTS = ("num_heads", "num_attention_heads")
_KV_COUNTS = ("num_key_value_heads", "num_kv_heads")
"""Names under which attention modules keep their numbers of heads."""
_READS_CONFIG = ("phi3", "phi4_multimodal")
"""Model types whose attention reads the number of heads from the config in each pass."""
Sizes = Mapping[str, Any]
"""Entry of `layer_sizes`."""


def sizes_of(cut: LayerCut, *, closed_attention: bool, closed_mlp: bool) -> dict[str, int | bool]:
    """Describe a layer for `layer_sizes`. closed_...: whether a sub-layer is replaced by its constant."""
    attention_bias, mlp_bias = cut.biased
    return {
        "heads": 0 if closed_attention else len(cut.heads),
        "kv_heads": 0 if closed_attention else len(cut.kv_heads),
        "mlp_neurons": 0 if closed_mlp else len(cut.neurons),
        "attention_bias": attention_bias,
        "mlp_bias": mlp_bias,
    }


class ConstantSublayer(nn.Module):
    """A closed sub-layer: adds the same to every token."""

    def __init__(self, hidden: int, bias: bool, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(hidden, dtype=dtype, device=device)) if bias else None

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        """Return the constant for every token."""
        output = torch.zeros_like(hidden_states)
        return output if self.bias is None else output + self.bias


class ConstantAttention(ConstantSublayer):
    """A closed attention. Its keys have width 1 and are zero: a cache counts the tokens by those of the first layer."""

    def __init__(self, layer: int | None, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.layer_idx = layer

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        """Return the constant for every token, and no attention weights."""
        from transformers.cache_utils import Cache

        for value in (*args, *kwargs.values()):
            if isinstance(value, Cache) and self.layer_idx is not None:
                keys = hidden_states.new_zeros(len(hidden_states), 1, hidden_states.shape[-2], 1)
                value.update(keys, keys, self.layer_idx)
        return super().forward(hidden_states), None


@cache
def register_model(base_type: str) -> Any:
    """Make and register the classes of compact models of a base type; returns the config class.

    Raises UserError for a type that this version of transformers does not know.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if base_type not in CONFIG_MAPPING:
        raise UserError(
            f"base_model_type {base_type!r} is not known to this version of transformers; install a newer one"
        )
    config_class = compact_config_class(base_type)
    base: Any = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[base_type]]

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, config, *args, **kwargs)
        resize(self, config.layer_sizes)

    members: dict[str, Any] = {"__init__": build, "config_class": config_class, "__module__": __name__}
    AutoModelForCausalLM.register(config_class, type(f"Compact{base.__name__}", (base,), members))
    return config_class


def resize(model: Any, layer_sizes: Sequence[Sizes]) -> None:
    """Give every layer of a model of the base's sizes its own. Weights are new, without values of the old ones."""
    frozen = find_sites(model)
    if any(shape.experts for shape in frozen.shapes):
        for layer, sizes in zip(frozen.layers, layer_sizes, strict=True):
            if "experts" in sizes:
                resize_experts(layer.sites[EXPERT], sizes["experts"], sizes["expert_neurons"])
        return
    row, model_type = frozen.paths, model.config.model_type
    for layer, sizes in zip(frozen.layers, layer_sizes, strict=True):
        shape = layer.shape
        transposed = hasattr(layer.attention, "nx")
        parts = LayerParts(model_type, row, shape, transposed)
        kept = _numbered(int(sizes["heads"]), int(sizes["kv_heads"]), int(sizes["mlp_neurons"]), shape)
        _resize_attention_counts(layer.module.get_submodule(row.attention.rpartition(".")[0]), model_type, sizes)
        for path, biased in ((row.attention, sizes["attention_bias"]), (row.mlp, sizes["mlp_bias"])):
            projection = layer.module.get_submodule(path)
            if biased and projection.bias is None:
                projection.bias = nn.Parameter(torch.zeros_like(projection.weight[:, 0]))
        for name, parameter in list(layer.module.named_parameters()):
            _resize_parameter(layer.module, name, parameter, parts, kept)
        for path, closed, kind in (
            (row.attention, not sizes["heads"], ConstantAttention),
            (row.mlp, not sizes["mlp_neurons"], ConstantSublayer),
        ):
            if closed:
                _replace(layer.module, path, kind)


def _numbered(heads: int, kv_heads: int, neurons: int, shape: LayerShape) -> LayerCut:
    """A cut of these sizes, for the sizes of its parameters."""
    first, second, third = (torch.arange(max(count, 1)) for count in (heads, kv_heads, neurons))
    return LayerCut(0, shape, first, second, third, opened={}, constants={})


def _resize_attention_counts(attention: Any, model_type: str, sizes: Sizes) -> None:
    heads, kv = max(int(sizes["heads"]), 1), max(int(sizes["kv_heads"]), 1)
    values = dict.fromkeys(_COUNTS, heads) | dict.fromkeys(_KV_COUNTS, kv) | {"num_key_value_groups": heads // kv}
    if isinstance(width := getattr(attention, "head_dim", None), int):
        values["split_size"] = heads * width
    for name, value in values.items():
        if hasattr(attention, name):
            setattr(attention, name, value)
    for name, count in (("q_layernorm", heads), ("k_layernorm", kv)):
        if isinstance(norms := getattr(getattr(attention, name, None), "norms", None), nn.ModuleList):
            attention.get_submodule(name).norms = nn.ModuleList(copy.deepcopy(norms[0]) for _ in range(count))
    if model_type in _READS_CONFIG:
        own = copy.copy(attention.config)
        own.num_attention_heads, own.num_key_value_heads = heads, kv
        attention.config = own


def _resize_parameter(layer: nn.Module, name: str, parameter: nn.Parameter, parts: LayerParts, kept: LayerCut) -> None:
    """Give a parameter the size that it has in the written layer, and its module the numbers that describe it."""
    size = parts.size(name, kept, parameter.shape)
    if size == parameter.shape:
        return
    path, _, leaf = name.rpartition(".")
    module: Any = layer.get_submodule(path)
    setattr(module, leaf, nn.Parameter(parameter.new_empty(size), requires_grad=parameter.requires_grad))
    if leaf != "weight" or len(size) != 2:
        return
    if hasattr(module, "nx"):
        module.nx, module.nf = size
    elif hasattr(module, "in_features"):
        module.out_features, module.in_features = size


def _replace(layer: nn.Module, path: str, kind: type) -> None:
    """Put a constant in the place of the sub-layer that holds an output projection; a projection without one keeps a neuron."""
    projection: Any = layer.get_submodule(path)
    parent = path.rpartition(".")[0]
    if not parent:
        return
    weight = projection.weight
    hidden = weight.shape[1] if hasattr(projection, "nx") else weight.shape[0]
    sizes = (hidden, projection.bias is not None, weight.dtype, weight.device)
    if kind is ConstantAttention:
        old = layer.get_submodule(parent)
        layer.set_submodule(
            parent, ConstantAttention(getattr(old, "layer_idx", getattr(old, "layer_id", None)), *sizes)
        )
    else:
        layer.set_submodule(parent, ConstantSublayer(*sizes))
