"""Configs of stock transformers classes for cut models: which sizes a class takes, and which class."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from bigcircuit.export.cut import HeadArrangement
from bigcircuit.model.granularity import LayerShape
from bigcircuit.model.sites import FrozenModel, find_sites

_KV_KEYS = ("num_key_value_heads", "num_kv_heads")
_MLP_KEYS = ("n_inner", "ffn_hidden_size", "ffn_dim", "intermediate_size")
_LAYER_LISTS = ("layer_types", "no_rope_layers", "mlp_layer_types")
"""Settings with an entry a layer."""
_BY_LAYER_NUMBER = {"gpt_neo": "attention_types", "gpt2": "scale_attn_by_inverse_layer_idx"}
"""Model type -> setting under which a layer computes something else at another place."""
_SUBSTITUTES = {"llama": ("mistral", {"sliding_window": None})}
"""Model type whose config refuses sizes -> a type whose config takes them, with the same tensors but for biases; its settings."""
_BIASES = (("attention_out_bias", "attention_bias", "use_bias"), ("mlp_bias", "use_bias"))
"""Settings that give the output projection of attention a bias, and that of the MLP, in the order of preference."""


def skeleton_of(hf_config: Any) -> FrozenModel:
    """Build the stock model of a config on the meta device. Raises whatever the library raises for sizes that it refuses."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return find_sites(AutoModelForCausalLM.from_config(hf_config, dtype=torch.float32))


def changed_config(hf_config: Any, changes: Mapping[str, Any], model_type: str | None = None) -> Any:
    """Make a config with other settings, checked by its class. model_type: another type with the same settings."""
    from transformers import AutoConfig

    settings = {key: value for key, value in hf_config.to_dict().items() if key not in ("model_type", "architectures")}
    names = {hf_config.attribute_map.get(key, key): value for key, value in changes.items()}
    made = AutoConfig.for_model(model_type or hf_config.model_type, **settings | names)
    made._attn_implementation = hf_config._attn_implementation
    return made


def sized_config(
    hf_config: Any,
    shape: LayerShape,
    *,
    heads: HeadArrangement | None = None,
    mlp: int | None = None,
    layers: Sequence[int] | None = None,
    flags: Mapping[str, bool] | None = None,
    only: str | None = None,
) -> FrozenModel | None:
    """Build the stock model of the same sizes in every layer, on the meta device; None if no stock class takes these sizes.

    heads, mlp: number of heads and of MLP neurons, None for those of the base; layers: base layers that are kept; flags: further
    settings; only: the one model type that may be tried.
    """
    changes: dict[str, Any] = dict(flags or {})
    if heads is not None and (heads.heads, heads.kv_heads) != (shape.heads, shape.kv_heads):
        changes |= {"num_attention_heads": heads.heads, "head_dim": shape.head_dim}
        changes |= {key: heads.kv_heads for key in _KV_KEYS if hasattr(hf_config, key)}
    if mlp is not None and mlp != shape.intermediate:
        key = next((key for key in _MLP_KEYS if hasattr(hf_config, key)), None)
        if key is None:
            return None
        changes[key] = mlp
    if layers is not None and len(layers) != hf_config.num_hidden_layers:
        changes["num_hidden_layers"] = len(layers)
        for key in _LAYER_LISTS:
            if isinstance(listed := getattr(hf_config, key, None), (list, tuple)):
                changes[key] = [listed[layer] for layer in layers]
    expected = replace(
        shape,
        heads=heads.heads if heads else shape.heads,
        kv_heads=heads.kv_heads if heads else shape.kv_heads,
        intermediate=mlp or shape.intermediate,
    )
    tries: list[tuple[str | None, dict[str, Any]]] = [(None, {})]
    if only is not None:
        tries = [(only, {})]
    elif hf_config.model_type in _SUBSTITUTES:
        tries.append(_SUBSTITUTES[hf_config.model_type])
    for model_type, settings in tries:
        try:
            made = skeleton_of(changed_config(hf_config, changes | settings, model_type))
        except Exception:  # classes refuse sizes in many ways
            continue
        if model_type is not None and only is None:
            own = skeleton_of(changed_config(hf_config, flags or {}))
            if _tensor_names(made) != _tensor_names(own):
                continue
        if all(found == expected for found in made.shapes):
            return made
    return None


def _tensor_names(frozen: FrozenModel) -> set[str]:
    return {name for name, _ in frozen.layers[0].module.named_parameters()}


def bias_flags(hf_config: Any, wanted: tuple[bool, bool]) -> dict[str, bool] | None:
    """Find the settings that give output projections a bias.

    wanted: of attention, of the MLP. Returns {} where the model has them already, None where its class has no such setting.
    """
    plain = skeleton_of(changed_config(hf_config, {}))
    flags: dict[str, bool] = {}
    for place, needed in enumerate(wanted):
        if not needed or _has_biases(plain)[place]:
            continue
        for key in _BIASES[place]:
            if hasattr(hf_config, key) and _has_biases(skeleton_of(changed_config(hf_config, {key: True})))[place]:
                flags[key] = True
                break
        else:
            return None
    return flags


def _has_biases(frozen: FrozenModel) -> tuple[bool, bool]:
    layer = frozen.layers[0]
    return layer.attention.bias is not None, layer.mlp.bias is not None


def has_projection_biases(frozen: FrozenModel) -> bool:
    """Whether an output projection of a layer has a bias."""
    return any(_has_biases(frozen))


def layers_can_go(hf_config: Any) -> bool:
    """Whether what a layer computes does not depend on its number, so that layers before it can be left out."""
    return not getattr(hf_config, _BY_LAYER_NUMBER.get(hf_config.model_type, ""), False)
