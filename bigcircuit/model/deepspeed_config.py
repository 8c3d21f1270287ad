"""Read and check DeepSpeed config files, and fill in what depends on the model."""

import os
from pathlib import Path
from typing import Any

import torch

from bigcircuit.config.schema import ModelConfig
from bigcircuit.config.shipped import DEEPSPEED, shipped_file, shipped_names
from bigcircuit.errors import UserError
from bigcircuit.io.files import parse_json
from bigcircuit.model.sites import FrozenModel
from bigcircuit.model.weight_files import weight_files

DeepSpeedConfig = dict[str, Any]
_UNSUPPORTED = {
    "optimizer": "the gates have an optimizer of their own (train.lr)",
    "scheduler": "the gates have a schedule of their own (train.lr, train.lr_final)",
    "bf16": "it would cast gates to bfloat16; set model.dtype",
    "fp16": "it would cast gates to float16; set model.dtype",
    "train_batch_size": "set train.batch_size",
    "train_micro_batch_size_per_gpu": "set train.micro_batch_size",
    "gradient_accumulation_steps": "set train.micro_batch_size",
    "gradient_clipping": "set train.clip",
}
"""Section of a DeepSpeed config that a setting of bigcircuit replaces -> what to do instead."""
_UNSUPPORTED_ZERO = {
    "zero_quantized_weights": "weights are used as they are stored; give model.path a quantised checkpoint",
    "zero_quantized_nontrainable_weights": "weights are used as they are stored; give model.path a quantised checkpoint",
}
"""Key of `zero_optimization` that would change the weights -> what to do instead."""


def read_deepspeed(path: str | None, device: str = "auto") -> DeepSpeedConfig | None:
    """Read and check a DeepSpeed config file; None unless it asks for stage 3. device: `model.device`.

    path: a file, or the name of one that comes with the package, such as `zero3`.

    Below stage 3 ZeRO divides gradients and optimizer state, which frozen weights do not have. Raises UserError for a file that
    cannot be read, or that names all of its sections and values which bigcircuit replaces. A section with `"enabled": false` is
    left out, as if the file did not have it.
    """
    if path is None:
        return None
    file = Path(path).expanduser()
    try:
        named = None if file.exists() else shipped_file(DEEPSPEED, path, ".json")
        settings = parse_json((named or file).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = ", ".join(shipped_names(DEEPSPEED, ".json"))
        raise UserError(
            f"deepspeed {path}: no such file; name yours, or one that comes with the package: {known}"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"deepspeed {path}: not a JSON file ({error})") from error
    section = settings.get("zero_optimization") if isinstance(settings, dict) else None
    zero: dict[str, Any] = section if isinstance(section, dict) else {}
    stage = zero.get("stage")
    if stage not in (0, 1, 2, 3):
        raise UserError(f"deepspeed {path}: zero_optimization.stage is {stage!r}; set it to 0, 1, 2 or 3")
    settings = {
        name: value
        for name, value in settings.items()
        if not (name in _UNSUPPORTED and isinstance(value, dict) and value.get("enabled") is False)
    }
    unsupported = [name for name in _UNSUPPORTED if name in settings]
    unsupported += [name for name in _UNSUPPORTED_ZERO if zero.get(name, False) is not False]
    if unsupported:
        remedies = {**_UNSUPPORTED, **_UNSUPPORTED_ZERO}
        raise UserError(f"deepspeed {path}: take out {', '.join(f'{name} ({remedies[name]})' for name in unsupported)}")
    if stage != 3:
        return None
    if not isinstance(offload := zero.get("offload_param"), (dict, type(None))):
        raise UserError(
            f'deepspeed {path}: offload_param is {offload!r:.60}; set it to {{"device": "cpu"}}, or take it out to keep the '
            "weights on the accelerator"
        )
    device = pieces_on(settings)
    if device not in ("none", "cpu", "nvme"):
        raise UserError(f"deepspeed {path}: offload_param.device is {device!r}; set it to none, cpu or nvme")
    on_gpu = device != "cpu" and torch.cuda.is_available()
    os.environ.setdefault("DS_ACCELERATOR", "cuda" if on_gpu else "cpu")  # DeepSpeed need not guess
    return settings


def pieces_on(settings: DeepSpeedConfig) -> str:
    """Return where a rank keeps its piece of the weights.

    Returns "none": on the accelerator; "cpu": in memory of the host; "nvme": in the files of the checkpoint.
    """
    return str((settings["zero_optimization"].get("offload_param") or {}).get("device", "none"))


def check_weights(config: ModelConfig, settings: DeepSpeedConfig | None, stored: torch.dtype | None) -> None:
    """Check that weights can be read from the checkpoint's own files during passes, where the settings ask for it.

    settings: DeepSpeed config of stage 3 or None. stored: dtype of all weights in the files, None if they have several.
    Raises UserError.
    """
    if config.weights == "stream" and settings is not None:
        raise UserError(
            "model.weights stream is for weights on one device; with ZeRO stage 3 set it to resident and "
            "offload_param.device to nvme (configs/deepspeed/zero3_offload_nvme.json)"
        )
    from_files = config.weights == "stream" or (settings is not None and pieces_on(settings) == "nvme")
    if from_files and not weight_files(config):
        raise UserError(
            f"model.path {config.path}: no safetensors files are on this machine to read weights from; download it"
        )
    if from_files and stored != getattr(torch, config.dtype):
        name = "several dtypes" if stored is None else str(stored).removeprefix("torch.")
        setting, instead = (
            ("model.weights stream", "model.weights to resident")
            if settings is None
            else ("offload_param.device nvme", "offload_param.device to cpu")
        )
        raise UserError(
            f"{setting} reads weights as they are stored, which is {name}, and model.dtype is {config.dtype}; "
            f"set {'' if stored is None else f'model.dtype to {name} or '}{instead}"
        )


def with_auto_values(settings: DeepSpeedConfig, frozen: FrozenModel) -> DeepSpeedConfig:
    """Fill in the `auto` values of a DeepSpeed config for a model: prefetch one layer, hold at most two.

    Other values of `zero_optimization` that are `auto`, which a Trainer fills in, are left to DeepSpeed's defaults.
    Pieces in the files of the checkpoint are memory of the host to DeepSpeed: its own files and buffers are not used.
    """
    largest = max(sum(p.numel() for p in layer.module.parameters()) for layer in frozen.layers)
    zero = {**settings["zero_optimization"], "memory_efficient_linear": False}  # zero3.py brings its own
    values = {"stage3_prefetch_bucket_size": largest, "stage3_max_live_parameters": 2 * largest}
    zero.update({name: value for name, value in values.items() if zero.get(name) == "auto"})
    zero = {name: value for name, value in zero.items() if value != "auto"}
    if (device := pieces_on(settings)) != "none":
        pinned = device == "cpu" and bool(zero["offload_param"].get("pin_memory"))  # pages of files cannot be pinned
        zero["offload_param"] = {"device": "cpu", "pin_memory": pinned}
    return {**settings, "zero_optimization": zero, "train_micro_batch_size_per_gpu": 1}
