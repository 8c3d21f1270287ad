"""Quantised frozen weights: the formats whose gradients are those of the dequantised weights, and how each is loaded."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from bigcircuit.config.extras import install_command, missing, need
from bigcircuit.config.schema import ModelConfig
from bigcircuit.errors import UserError
from bigcircuit.model.dequantised_linear import (
    is_quantised,
    plain_linear,
    read_four_bits,
    read_int8,
    read_torchao,
    use_dequantised,
)
from bigcircuit.model.library_errors import quieten_libraries
from bigcircuit.model.weight_files import NOT_FLOATING, stored_tensors


class WeightFormat(NamedTuple):
    """Format of quantised weights that can be loaded."""

    package: str | None
    """Package that reads the format, besides transformers."""
    bits: float | None = None
    """Bits of a weight in memory, with its share of the scales; None for weights that transformers dequantises when loading."""
    read: Callable[[nn.Module], Tensor] | None = None
    """Dequantise the weight of a projection of this format, [out, in], in float32 or its own dtype."""


_TRANSFORMERS = (5, 23)
"""Release of transformers that the extra `quantization` asks for: with 5.9 packed weights stay packed, or are zero."""

WEIGHT_FORMATS = {
    "fp8": WeightFormat(None),
    "mxfp4": WeightFormat(None),
    "compressed-tensors float-quantized": WeightFormat("compressed_tensors"),
    "compressed-tensors int-quantized": WeightFormat("compressed_tensors"),
    "compressed-tensors naive-quantized": WeightFormat("compressed_tensors"),
    "compressed-tensors pack-quantized": WeightFormat("compressed_tensors"),
    "torchao Int8WeightOnlyConfig": WeightFormat("torchao", 8.1, read_torchao),
    "torchao IntxWeightOnlyConfig": WeightFormat("torchao", 8.5, read_torchao),
    "bitsandbytes nf4": WeightFormat("bitsandbytes", 4.5, read_four_bits),
    "bitsandbytes fp4": WeightFormat("bitsandbytes", 4.5, read_four_bits),
    "bitsandbytes int8": WeightFormat("bitsandbytes", 8.1, read_int8),
}
"""Name of a format -> how it is loaded. Every entry has a test that compares gradients with those of the dequantised model."""
ON_LOADING = {"int8": "torchao Int8WeightOnlyConfig", "nf4": "bitsandbytes nf4"}
"""`model.quantization` -> format that plain weights are brought into when they are loaded."""


class _Group(BaseModel):
    weights: dict[str, Any] | None = None


class _StoredSettings(BaseModel):
    """What is read here of a `quantization_config`."""

    config_groups: dict[str, _Group] | None = None
    sparsity_config: dict[str, Any] | None = None
    weight_block_size: list[int] | None = None
    modules_to_not_convert: list[str] | None = None
    llm_int8_skip_modules: list[str] | None = None


class Quantization(NamedTuple):
    """How the weights of a model are quantised in its files and in memory."""

    stored: str = ""
    """Format in the files, a key of WEIGHT_FORMATS; empty for plain weights."""
    loaded: str = ""
    """Format in memory; empty for plain weights, which dequantised ones are."""
    skipped: tuple[str, ...] = ()
    """Parts of names of the modules that are not quantised."""

    @property
    def bits(self) -> float | None:
        """Bits of a quantised weight in memory, None for plain weights."""
        return WEIGHT_FORMATS[self.loaded].bits if self.loaded else None

    @property
    def line(self) -> str | None:
        """One line about quantised weights; None if there are none."""
        if self.loaded:
            made = "" if self.stored else ", made of plain weights when they are loaded"
            return f"weights: {self.loaded}{made}; each projection is dequantised when it is used"
        return f"weights: {self.stored} in the files, dequantised when they are loaded" if self.stored else None

    def arguments(self, hf_config: Any, device: torch.device | str) -> dict[str, Any]:
        """Return the arguments of `from_pretrained` that load the weights so. hf_config: of the checkpoint; may be changed."""
        device_map = {"device_map": {"": str(device)}} if self.bits is not None else {}
        if self.stored:
            if WEIGHT_FORMATS[self.stored].bits is None:
                hf_config.quantization_config = {**(_plain(hf_config.quantization_config) or {}), "dequantize": True}
            return {"config": hf_config, **device_map}
        return {"quantization_config": _new_config(self.loaded), **device_map} if self.loaded else {}


def quantization_of(config: ModelConfig, hf_config: Any, is_sharded: bool = False) -> Quantization:
    """Find out how the weights of a model are quantised, from the config of its checkpoint and the settings.

    is_sharded: whether ZeRO-3 divides the weights over the ranks.

    Raises UserError for a format that is not in WEIGHT_FORMATS, for one whose package is not installed, and for settings that do
    not go together.
    """
    quieten_libraries()
    subject = f"model.path {config.path}"
    settings, asked = _plain(getattr(hf_config, "quantization_config", None)), config.quantization
    if settings is None:
        if asked in ("none", "dequantise"):
            if asked == "dequantise":
                raise UserError(
                    f"{subject}: model.quantization is dequantise, but the weights are not quantised; set it to none"
                )
            return Quantization()
        _check_is_whole(config, f"model.quantization {asked}", is_sharded)
        _check_package(f"model.quantization {asked}", ON_LOADING[asked])
        return Quantization("", ON_LOADING[asked])
    _check_settings(subject, settings)
    name = _format_of(settings)
    if name not in WEIGHT_FORMATS:
        raise UserError(
            f"{subject}: its weights are quantised as {name}, which is not among the formats that gradients pass "
            f"({', '.join(WEIGHT_FORMATS)}); give the model in one of these, in bfloat16 or in float32"
        )
    if asked in ON_LOADING:
        raise UserError(
            f"{subject}: model.quantization is {asked}, but the weights are quantised already ({name}); set it to none or "
            "dequantise"
        )
    _check_schemes(subject, settings)
    _check_scales(config, subject, name, settings.get("weight_block_size"))
    _check_package(f"{subject}: its weights are quantised as {name}", name)
    stays = WEIGHT_FORMATS[name].bits is not None and asked == "none"
    if config.weights == "stream" or stays:
        _check_is_whole(config, f"{subject}, which is quantised ({name}),", is_sharded)
    skipped = settings.get("modules_to_not_convert") or settings.get("llm_int8_skip_modules") or ()
    return Quantization(name, name if stays else "", tuple(skipped))


def finish_loading(model: Any, quantization: Quantization, dtype: torch.dtype) -> None:
    """Have the projections of a loaded model compute with dequantised weights, or make them plain, as is asked for.

    dtype: of all weights that are plain. Raises UserError if something is left that is neither.
    """
    if not (quantization.stored or quantization.loaded):
        return
    form, found = WEIGHT_FORMATS[quantization.loaded or quantization.stored], 0
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if form.read is None or not is_quantised(module):
                continue
            found += 1
            if quantization.loaded:
                use_dequantised(module, form.read)
            else:
                setattr(parent, name, plain_linear(module, form.read, dtype))
    if form.read is not None and not found:
        raise UserError(
            f"{quantization.loaded or quantization.stored}: no projection of the model is quantised by it; set "
            "model.quantization to none"
        )
    for name, parameter in model.named_parameters():
        if type(parameter) is nn.Parameter and parameter.is_floating_point() and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)  # transformers leaves what it dequantises in a dtype of its own
        elif not quantization.loaded and (not parameter.is_floating_point() or type(parameter) is not nn.Parameter):
            raise UserError(f"{name} is still {type(parameter).__name__} of {parameter.dtype} after it was dequantised")


def weight_bytes_as(module: nn.Module, quantization: Quantization) -> int:
    """Count the bytes that a plain module's weights take in memory when they are quantised so."""
    quantised = set()
    if quantization.bits is not None:
        quantised = {
            id(one.weight)
            for name, one in module.named_modules()
            if (type(one) is nn.Linear or type(one).__name__ == "Conv1D")
            and not any(part in name for part in (*quantization.skipped, "lm_head"))
        }
    return sum(
        round(p.numel() * (quantization.bits or 0) / 8) if id(p) in quantised else p.numel() * p.element_size()
        for p in module.parameters()
    )


def _plain(settings: Any) -> dict[str, Any] | None:
    """Return the quantisation settings of a config as plain data, None without."""
    if settings is None:
        return None
    return dict(settings) if isinstance(settings, Mapping) else settings.to_dict()


def _format_of(settings: Mapping[str, Any]) -> str:
    """Name the format of a checkpoint, as WEIGHT_FORMATS does where the format is there."""
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return f"bitsandbytes {settings.get('bnb_4bit_quant_type', 'fp4') if settings.get('load_in_4bit') else 'int8'}"
    method = str(settings.get("quant_method", "an unnamed method"))
    if method == "compressed-tensors":
        return f"{method} {settings.get('format', 'dense')}"
    if method == "torchao":
        kind = settings.get("quant_type")
        inner = kind.get("default", kind) if isinstance(kind, Mapping) else kind
        return f"{method} {inner.get('_type', inner) if isinstance(inner, Mapping) else inner}"[:80]
    return method


def _check_settings(subject: str, settings: Mapping[str, Any]) -> None:
    """Raise UserError for a part of a `quantization_config` that is of another type than its format has it."""
    try:
        _StoredSettings.model_validate(settings)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part)[:60] for part in ("quantization_config", *problem["loc"]))
        raise UserError(
            f"{subject}: {place} in config.json is not as it should be ({problem['msg'].lower()}); copy the model again"
        ) from error


def _check_schemes(subject: str, settings: Mapping[str, Any]) -> None:
    """Raise UserError for what is lost when compressed-tensors are dequantised: all but the first scheme, rotations, sparsity."""
    for key in ("transform_config", "sparsity_config"):
        found = settings.get(key)
        if found and (key == "transform_config" or dict(found).get("format", "dense") != "dense"):
            raise UserError(
                f"{subject}: its quantization_config has a {key}, which is lost when weights are dequantised; give the model in "
                "bfloat16 or float32"
            )
    groups = settings.get("config_groups") or {}
    schemes = {str(sorted((group.get("weights") or {}).items(), key=str)) for group in groups.values()}
    if len(schemes) > 1:
        raise UserError(
            f"{subject}: its config_groups quantise weights in {len(schemes)} ways, of which transformers dequantises one; give "
            "the model in bfloat16 or float32"
        )


def _check_scales(config: ModelConfig, subject: str, name: str, block: Sequence[int] | None) -> None:
    """Raise UserError for a quantised tensor without its scale, whose numbers transformers would take for the weights, and for
    one that blocks do not divide, for which it would take blocks of another size: rows of the weight / rows of the scales.

    block: rows and columns of a block with a scale, where the config gives them.
    """
    if WEIGHT_FORMATS[name].bits is not None:
        return  # their scales have no names of their own, and loading stops without them
    stored = stored_tensors(config)
    for tensor, held in stored.items():
        module, _, part = tensor.rpartition(".")
        if part in ("weight", "weight_packed") and held.dtype == NOT_FLOATING:
            scales = [f"{module}.weight_scale", f"{module}.weight_scale_inv"]
            if not any(scale in stored for scale in scales):
                raise UserError(
                    f"{subject}: its files have {tensor} without a scale ({' or '.join(scales)}); copy the model again"
                )
            sizes = (
                zip(held.shape, stored[scales[1]].shape, block, strict=False) if block and scales[1] in stored else ()
            )
            if any(count > 1 and size != count * length for size, count, length in sizes):
                raise UserError(
                    f"{subject}: {tensor} of {' x '.join(map(str, held.shape))} is quantised in blocks of "
                    f"{' x '.join(map(str, block or ()))}, which do not divide it, and transformers dequantises it with blocks of "
                    "another size; give the model in bfloat16 or float32"
                )


def is_installed(name: str) -> bool:
    """Whether the package that reads a format is there."""
    package = WEIGHT_FORMATS[name].package
    return package is None or not missing("quantization", package)


def _check_package(subject: str, name: str) -> None:
    """Raise UserError where the package of a format is missing, or transformers is one that leaves its weights packed."""
    import transformers

    if tuple(map(int, transformers.__version__.split(".")[:2])) < _TRANSFORMERS:
        raise UserError(
            f"{subject}: reading this needs transformers {'.'.join(map(str, _TRANSFORMERS))} or newer, here is "
            f"{transformers.__version__}; {install_command('quantization')}"
        )
    package = WEIGHT_FORMATS[name].package
    if package is not None:
        need(f"{subject}: reading this", "quantization", package)


def _check_is_whole(config: ModelConfig, subject: str, is_sharded: bool) -> None:
    """Raise UserError where weights are used as they are in the files of the checkpoint, or are divided over ranks."""
    if config.weights == "stream":
        raise UserError(
            f"{subject} cannot have model.weights stream, which uses weights as they are in their files; set it to resident"
        )
    if is_sharded:
        raise UserError(
            f"{subject} cannot be divided over ranks by ZeRO stage 3; leave out the DeepSpeed config, or use plain weights "
            "(model.quantization dequantise makes quantised ones plain)"
        )


def _new_config(name: str) -> Any:
    """Make the settings by which transformers quantises plain weights when it loads them."""
    if name == ON_LOADING["int8"]:
        from torchao.quantization import Int8WeightOnlyConfig
        from transformers import TorchAoConfig

        return TorchAoConfig(Int8WeightOnlyConfig())
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
