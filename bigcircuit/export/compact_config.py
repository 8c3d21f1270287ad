"""Config of compact models: that of the base model with the sizes of every layer. Imports no torch.

`config.json` has `model_type: bigcircuit`, the base's own type in `base_model_type`, all settings of the base, and in `layer_sizes`
a mapping a layer: `heads`, `kv_heads`, `mlp_neurons`, `attention_bias`, `mlp_bias`; a number of 0 stands for a closed sub-layer.
In a mixture it has `experts`, the numbers of the kept ones, and `expert_neurons`; nothing in a layer without experts.
"""

from functools import cache
from typing import Any

MODEL_TYPE = "bigcircuit"


@cache
def compact_config_class(base_type: str) -> Any:
    """Make the config class of compact models of a base type, a subclass of the base's. Raises KeyError for an unknown type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    base = CONFIG_MAPPING[base_type]

    def to_dict(self: Any) -> dict[str, Any]:
        return base.to_dict(self) | {"model_type": MODEL_TYPE, "base_model_type": base_type}

    def to_diff_dict(self: Any) -> dict[str, Any]:
        return base.to_diff_dict(self) | {"model_type": MODEL_TYPE, "base_model_type": base_type}

    members = {"to_dict": to_dict, "to_diff_dict": to_diff_dict, "__module__": __name__}
    return type(f"Compact{base.__name__}", (base,), members)
