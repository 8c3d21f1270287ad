"""Load exported models: by `load_exported`, and by the Auto classes of transformers. Importing this file imports no library."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from pathlib import Path
from typing import Any

from bigcircuit.errors import UserError
from bigcircuit.export.compact_config import MODEL_TYPE

_AUTO = "transformers.models.auto.configuration_auto"


def load_exported(folder: str | Path, **settings: Any) -> Any:
    """Load an exported model of any format that transformers or this project load.

    folder: what `bigcircuit export` wrote; settings: passed to `from_pretrained` of transformers, such as dtype and device_map.
    Returns the Hugging Face model, for (IA)3 with its adapter on the base model. Raises UserError for another folder.
    """
    from transformers import AutoModelForCausalLM

    path = Path(folder)
    if (path / "adapter_config.json").exists():
        from peft import AutoPeftModelForCausalLM

        return AutoPeftModelForCausalLM.from_pretrained(path, **settings)
    if not (path / "config.json").exists():
        raise UserError(
            f"{path}: holds no exported model (no config.json); give the folder that `bigcircuit export` wrote"
        )
    register_config()
    return AutoModelForCausalLM.from_pretrained(path, **settings)


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
