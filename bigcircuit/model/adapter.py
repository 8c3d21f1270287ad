"""Open a PEFT adapter and put it on a model, with weights or on the meta device."""

from pathlib import Path
from typing import Any, NamedTuple

from safetensors import safe_open

from bigcircuit.errors import UserError
from bigcircuit.model.library_errors import explain_library_errors
from bigcircuit.model.weight_files import COPY_AGAIN, model_folder

ADAPTER_WEIGHTS, ADAPTER_CONFIG = "adapter_model.safetensors", "adapter_config.json"
_NAME = "default"
"""Name of the adapter within the model, a part of the names of its tensors."""


class AdaptedModel(NamedTuple):
    """A Hugging Face model with an adapter; its module paths stay those of the architecture table."""

    model: Any
    unused: tuple[str, ...]
    """Names of the adapter's tensors that have no place in the model, sorted."""


def adapt(model: Any, adapter: str) -> AdaptedModel:
    """Put an adapter on a model. On the meta device names and shapes of the adapter's tensors are checked all the same.

    adapter: folder or hub id. Raises UserError if the adapter cannot be opened, is stored as a pickle, adds virtual tokens,
    lacks tensors that its config asks for, or has them in other shapes.
    """
    adapted, unused = _put_on(model, adapter)
    return AdaptedModel(adapted.get_base_model(), unused)


def merged(model: Any, adapter: str) -> Any:
    """Add an adapter to the weights of a model, and return the model without adapter modules. Raises UserError like `adapt`."""
    with explain_library_errors(f"model.adapter {adapter}: cannot be merged", None, "merge it with peft first"):
        return _put_on(model, adapter)[0].merge_and_unload()


def _put_on(model: Any, adapter: str) -> tuple[Any, tuple[str, ...]]:
    """Wrap a model in peft's model, and list the adapter's tensors that have no place in it."""
    from peft import PeftConfig, PeftModel

    subject = f"model.adapter {adapter}"
    folder, on_meta = model_folder(adapter), model.device.type == "meta"
    opening = explain_library_errors(
        f"{subject}: no PEFT adapter could be opened",
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
    return adapted, tuple(sorted(found.unexpected_keys))


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
