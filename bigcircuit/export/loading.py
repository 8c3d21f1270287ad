"""Load exported models: by `load_exported`, and by the Auto classes of transformers. Importing this file imports no library."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from pathlib import Path
from typing import Any

from bigcircuit.errors import UserError
from bigcircuit.export.compact_config import MODEL_TYPE

_AGAIN = "export the circuit again"
_AUTO = "transformers.models.auto.configuration_auto"


def load_exported(folder: str | Path, **settings: Any) -> Any:
    """Load an exported model of any format that transformers or this project load.

    folder: what `bigcircuit export` wrote; settings: passed to `from_pretrained` of transformers, such as dtype and device_map.
    Returns the Hugging Face model, for (IA)3 with its adapter on the base model. Raises UserError for another folder, and for one
    whose files are damaged or lack weights, which transformers would draw at random.
    """
    from transformers import AutoModelForCausalLM

    from bigcircuit.model.library_errors import explain_library_errors, quieten_libraries

    quieten_libraries()
    path = Path(folder)
    opening = explain_library_errors(f"{path}: cannot be loaded", path if path.is_dir() else None, _AGAIN)
    if (path / "adapter_config.json").exists():
        from peft import AutoPeftModelForCausalLM, get_peft_model_state_dict

        with opening:
            stored = _stored(path / "adapter_model.safetensors")  # first, because PEFT would open a pickle in its place
            adapted = AutoPeftModelForCausalLM.from_pretrained(path, **settings)
            _check_whole(path, set(get_peft_model_state_dict(adapted)) - stored)
        return adapted
    if not (path / "config.json").exists():
        raise UserError(
            f"{path}: holds no exported model (no config.json); give the folder that `bigcircuit export` wrote"
        )
    register_config()
    with opening:
        safe = {"trust_remote_code": False, "use_safetensors": True}
        opened: Any = AutoModelForCausalLM.from_pretrained(path, **{**safe, **settings}, output_loading_info=True)
    model, info = opened
    _check_whole(path, {*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])})
    return model


def _stored(path: Path) -> set[str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def _check_whole(path: Path, missing: set[str]) -> None:
    """Raises UserError for weights that the files lack or have in other shapes."""
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{path}: its files have no {min(missing)}{more} of the shape that its config asks for; {_AGAIN}"
        )


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
