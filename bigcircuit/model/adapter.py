"""Open a PEFT adapter and put it on a model, with weights or on the meta device."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from bigcircuit.errors import UserError
from bigcircuit.model.granularity import LayerShape
from bigcircuit.model.library_errors import explain_library_errors
from bigcircuit.model.sites import find_sites
from bigcircuit.model.text_part import language_part
from bigcircuit.model.weight_files import COPY_AGAIN, model_folder

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_NAME = "default"
"""Name of the adapter within the model, a part of the names of its tensors."""


class AdaptedModel(NamedTuple):
    """A Hugging Face model with an adapter; its module paths stay those of the architecture table."""

    model: Any
    unused: tuple[str, ...]
    """Names of the adapter's tensors that have no place in the model, sorted."""
    notes: tuple[str, ...] = ()
    """What the user should know about the adapter, one line each."""


def adapt(model: Any, adapter: str) -> AdaptedModel:
    """Put an adapter on a model. On the meta device names and shapes of the adapter's tensors are checked all the same.

    adapter: folder or hub id. Raises UserError if the adapter cannot be opened, is stored as a pickle, adds virtual tokens,
    lacks tensors that its config asks for, or has them in other shapes.
    """
    return _put_on(model, adapter)[1]


def merged(model: Any, adapter: str) -> Any:
    """Add an adapter to the weights of a model, and return the model without adapter modules. Raises UserError like `adapt`."""
    with explain_library_errors(f"model.adapter {adapter}: cannot be merged", None, "merge it with peft first"):
        return _put_on(model, adapter)[0].merge_and_unload()


def _put_on(model: Any, adapter: str) -> tuple[Any, AdaptedModel]:
    """Wrap a model in peft's model. Returns the wrapper too."""
    from peft import PeftConfig, PeftModel

    subject = f"model.adapter {adapter}"
    folder, on_meta = model_folder(adapter), model.device.type == "meta"
    others = _folders_with_adapters(folder)
    if folder is not None and others and not (folder / ADAPTER_CONFIG).exists():
        raise UserError(
            f"{subject}: holds the adapters {', '.join(others)}; set model.adapter to {adapter}/{others[0]} or another"
        )
    absent = "there is no such folder here, and " if folder is None else ""
    opening = explain_library_errors(
        f"{subject}: {absent}no PEFT adapter could be opened",
        folder,
        f"give a folder with {ADAPTER_CONFIG} and {ADAPTER_WEIGHTS}",
    )
    with opening:
        kind = PeftConfig.from_pretrained(adapter)
    if kind.is_prompt_learning:
        # Virtual tokens are not weights: they would be lost with the wrapper, which get_base_model removes.
        raise UserError(f"{subject}: {kind.peft_type} adds virtual tokens; use an adapter on the weights")
    _check_readable(adapter, folder)
    remedy = f"give the model that it was trained on, or mend {ADAPTER_CONFIG}"
    with explain_library_errors(f"{subject}: does not fit the model", folder, remedy):
        kind.inference_mode = True
        adapted = PeftModel(model, kind, _NAME, low_cpu_mem_usage=on_meta)
        found = adapted.load_adapter(adapter, _NAME, torch_device="cpu", low_cpu_mem_usage=on_meta)
    missing = sorted(found.missing_keys)
    if missing:
        raise UserError(
            f"{subject}: {ADAPTER_WEIGHTS} lacks {missing[0].replace(f'.{_NAME}.', '.')}"
            f"{f' and {len(missing) - 1} more' if len(missing) > 1 else ''}, which {ADAPTER_CONFIG} asks for; "
            "copy both files again"
        )
    notes = []
    if idle := _targets_without_module(kind, model):
        notes.append(
            f"{subject}: no module of the model is named {', '.join(idle)}, which {ADAPTER_CONFIG} asks for; the adapter does "
            "nothing there"
        )
    if others:
        notes.append(f"{subject}: holds other adapters too, which are not used: {', '.join(others)}")
    return adapted, AdaptedModel(adapted.get_base_model(), tuple(sorted(found.unexpected_keys)), tuple(notes))


def check_layout(adapted: AdaptedModel, shapes: Sequence[LayerShape], adapter: str) -> None:
    """Check that layers and sites of a model are where they were before an adapter was put on it.

    shapes: of the layers of the model alone. Raises UserError.
    """
    try:
        found = find_sites(language_part(adapted.model), guess=True).shapes
    except AttributeError as error:
        raise UserError(
            f"model.adapter {adapter}: puts modules around those of the layers, so that they are not found any more ({error}); "
            "merge the adapter into the weights"
        ) from error
    if found != tuple(shapes):
        raise UserError(
            f"model.adapter {adapter}: makes {len(found)} layers of {len(shapes)} or changes their widths; merge the adapter into "
            "the weights"
        )


def _folders_with_adapters(folder: Path | None) -> list[str]:
    """Name the folders inside a folder that hold an adapter."""
    return sorted(path.parent.name for path in folder.glob(f"*/{ADAPTER_CONFIG}")) if folder is not None else []


def _targets_without_module(kind: Any, model: Any) -> list[str]:
    """Name the modules and parameters that an adapter asks for by name and that are not in the model."""
    names = [name for name, _ in (*model.named_modules(), *model.named_parameters())]
    asked: set[str] = set()
    for field in ("target_modules", "feedforward_modules", "target_parameters", "modules_to_save"):
        targets = getattr(kind, field, None)
        asked |= set(targets) if isinstance(targets, (list, set, tuple)) else set()
    # An adapted module keeps its name, and its parameters are below `base_layer`.
    plain = {name.replace(".base_layer", "").replace(".original_module", "") for name in names}
    return sorted(one for one in asked if not any(name == one or name.endswith(f".{one}") for name in plain))


def _check_readable(adapter: str, folder: Path | None) -> None:
    """Check that an adapter has weights in safetensors format; PEFT would unpickle others. Raises UserError.

    A hub adapter that is not on this machine is downloaded.
    """
    subject = f"model.adapter {adapter}: {ADAPTER_WEIGHTS}"
    if folder is not None and not (folder / ADAPTER_WEIGHTS).exists():
        raise UserError(
            f"{subject} is not there, and no other format is read; save the adapter with save_pretrained of peft"
        )
    with explain_library_errors(f"{subject} cannot be read", folder, COPY_AGAIN):
        if folder is None:
            from huggingface_hub import hf_hub_download

            folder = Path(hf_hub_download(adapter, ADAPTER_WEIGHTS)).parent
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt"):
            pass
