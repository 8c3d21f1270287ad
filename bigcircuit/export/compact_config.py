"""Config of compact models: that of the base model with the sizes of every layer. Imports no torch.

`config.json` has `model_type: bigcircuit`, the base's own type in `base_model_type`, all settings of the base, and in `layer_sizes`
a mapping a layer: `heads`, `kv_heads`, `mlp_neurons`, `attention_bias`, `mlp_bias`; a number of 0 stands for a closed sub-layer.
"""

import importlib.abc
import importlib.util
import sys
from functools import cache
from typing import Any

MODEL_TYPE = "bigcircuit"
_AUTO = "transformers.models.auto.configuration_auto"


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


def register_config() -> None:
    """Make AutoConfig, and with it all Auto classes of transformers, know compact models."""
    from transformers.configuration_utils import PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, AutoConfig

    if MODEL_TYPE in CONFIG_MAPPING._extra_content:
        return

    class CompactConfig(PreTrainedConfig):
        """Stands for the config classes of all base types in AutoConfig's table."""

        model_type = MODEL_TYPE

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
            from bigcircuit.export.compact_model import register_model

            settings = {
                key: value for key, value in config_dict.items() if key not in ("model_type", "base_model_type")
            }
            return register_model(config_dict["base_model_type"]).from_dict(settings, **kwargs)

    AutoConfig.register(MODEL_TYPE, CompactConfig)


class _AfterImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Registers compact models right after the import of transformers' table of configs, whenever that is."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:  # noqa: ARG002
        """Take part in the import of that one module."""
        if name != _AUTO:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: Any) -> Any:
        """Leave it to the module's own loader."""
        return self._loader.create_module(spec)

    def exec_module(self, module: Any) -> None:
        """Run the module, then register."""
        self._loader.exec_module(module)
        register_config()


def register_with_transformers() -> None:
    """Register compact models now if transformers is imported, else when it is: importing this project imports no library."""
    if _AUTO in sys.modules:
        register_config()
    elif not any(isinstance(finder, _AfterImport) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterImport())
