"""Check that the tensors of a checkpoint are those of the model: transformers fills what is missing with random numbers."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from bigcircuit.config.schema import ModelConfig
from bigcircuit.errors import UserError
from bigcircuit.model.library_errors import explain_library_errors
from bigcircuit.model.weight_files import INDEX, NOT_FLOATING, WEIGHTS, model_folder, stored_tensors, weight_files


class CheckedTensors(NamedTuple):
    """Result of the comparison of a checkpoint with its model."""

    model: Any
    """The Hugging Face model on the meta device, as it was given or as it was loaded from the headers."""
    unused: tuple[str, ...]
    """Names of tensors in the files that the model does not use, sorted."""


def check_weight_tensors(config: ModelConfig, meta: Any) -> CheckedTensors:
    """Compare names, shapes and dtypes in the headers of the weight files with a model on the meta device.

    transformers does the loading, on the meta device and without reading data, so that its renaming and tying of tensors is the
    same as later. meta: Hugging Face model without weights. A model whose weights are not on this machine is compared when they are
    loaded, and so are quantised weights, which are not for this function. Raises UserError.
    """
    if not weight_files(config):
        return CheckedTensors(meta, ())
    stored = stored_tensors(config)
    usable = {name: tensor for name, tensor in stored.items() if tensor.dtype != NOT_FLOATING}
    with opening_weights(config):
        model, info = type(meta).from_pretrained(
            None,
            config=meta.config,
            dtype=meta.dtype,
            state_dict=usable,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below
        )
    check_loading_info(config, info, stored.keys() - usable.keys())
    return CheckedTensors(model, tuple(sorted(info["unexpected_keys"])))


def check_loading_info(config: ModelConfig, info: Mapping[str, Any], not_floating: Collection[str] = ()) -> None:
    """Check what transformers reports of loading. not_floating: names of stored tensors that no weights are computed with.

    Raises UserError naming the file and the first tensor that is missing or has another shape.
    """
    subject = f"model.path {config.path}: {_weights_name(config)}"
    remedy = "give the config.json that these weights were saved with, or copy both again"
    missing, wrong = sorted(info["missing_keys"]), sorted(info["mismatched_keys"], key=lambda found: found[0])
    if missing:
        name = missing[0]
        stored = next((other for other in sorted(not_floating) if name.endswith(other) or other.endswith(name)), None)
        if stored is not None:
            raise UserError(
                f"{subject} has {stored} in a dtype that needs scales, and config.json has no quantization_config; "
                "give the model in float32, bfloat16 or float16"
            )
        raise UserError(
            f"{subject} lacks {name}{_more(missing)}, which config.json asks for and random numbers would stand in for; "
            f"{remedy}"
        )
    if wrong:
        name, stored, expected = wrong[0]
        raise UserError(
            f"{subject} has {name} of {_shape(stored)}{_more(wrong)}, and config.json asks for {_shape(expected)}; {remedy}"
        )


@contextmanager
def opening_weights(config: ModelConfig) -> Iterator[None]:
    """Explain what transformers raises inside on the weight files, and keep its reports of several lines off the terminal."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    before, folder = logging.get_verbosity(), model_folder(config.path, config.revision)
    logging.set_verbosity_error()
    subject = f"model.path {config.path}: the weights cannot be loaded"
    try:
        with explain_library_errors(subject, folder, "copy or download the model again"):
            yield
    finally:
        logging.set_verbosity(before)


def _weights_name(config: ModelConfig) -> str:
    return INDEX if len(weight_files(config)) > 1 else WEIGHTS


def _more(names: Collection[Any]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


def _shape(size: Collection[int]) -> str:
    return " x ".join(map(str, size)) or "one number"
