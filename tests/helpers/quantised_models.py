"""Tiny checkpoints of every format of quantised weights that is loaded, each with its weights dequantised by hand."""

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    GptOssConfig,
    LlamaConfig,
    LlamaForCausalLM,
    TorchAoConfig,
)

Quantised = tuple[dict[str, Tensor], Tensor]
"""Tensors that a file has in the place of a projection's weight, by the end of their names, and the weight that they stand for."""
FP8_LARGEST = 448.0


def save_plain(folder: Path) -> Path:
    """Save a random Llama of two layers, whose widths are multiples of 128."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def fp8_blocks(weight: Tensor) -> Quantised:
    """Quantise blocks of 128 x 128, as DeepSeek does."""
    rows, columns = (-(-size // 128) for size in weight.shape)
    scales, stored, meant = torch.empty(rows, columns), weight.to(torch.float8_e4m3fn), torch.empty_like(weight)
    for row in range(rows):
        for column in range(columns):
            block = (slice(row * 128, row * 128 + 128), slice(column * 128, column * 128 + 128))
            scales[row, column] = weight[block].abs().max() / FP8_LARGEST
            stored[block] = (weight[block] / scales[row, column]).to(torch.float8_e4m3fn)
            meant[block] = stored[block].float() * scales[row, column]
    return {"weight": stored, "weight_scale_inv": scales}, meant


def fp8_rows(weight: Tensor) -> Quantised:
    """Quantise rows to 8 bits of floating point."""
    scale = weight.abs().amax(1, keepdim=True) / FP8_LARGEST
    stored = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale


def int8_rows(weight: Tensor) -> Quantised:
    """Quantise rows to whole numbers of 8 bits."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    stored = (weight / scale).round().to(torch.int8)
    return {"weight": stored, "weight_scale": scale}, stored.float() * scale


def packed_int4(weight: Tensor) -> Quantised:
    """Quantise groups of 32 to 4 bits, eight of which are in a number of 32 bits, the first in its lowest."""
    groups = weight.unflatten(1, (-1, 32))
    scale = groups.abs().amax(-1, keepdim=True) / 7
    whole = (groups / scale).round()
    meant = (whole * scale).flatten(1)
    nibbles = (whole.flatten(1).long() + 8).unflatten(1, (-1, 8))
    packed = (nibbles << torch.arange(0, 32, 4)).sum(-1)
    packed = torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)
    shape = torch.tensor(weight.shape, dtype=torch.int64)
    return {"weight_packed": packed, "weight_scale": scale.squeeze(-1), "weight_shape": shape}, meant


def compressed(form: str, kind: str, bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    """Settings of compressed-tensors, with activations that would be quantised too."""
    weights = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "dynamic": False, **more}
    inputs = {"num_bits": 8, "type": kind, "symmetric": True, "strategy": "token", "dynamic": True}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs if bits == 8 else None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


BY_HAND: dict[str, tuple[Callable[[Tensor], Quantised], dict[str, Any]]] = {
    "fp8": (
        fp8_blocks,
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    ),
    "compressed-tensors float-quantized": (fp8_rows, compressed("float-quantized", "float", 8, "channel")),
    "compressed-tensors int-quantized": (int8_rows, compressed("int-quantized", "int", 8, "channel")),
    "compressed-tensors naive-quantized": (int8_rows, compressed("naive-quantized", "int", 8, "channel")),
    "compressed-tensors pack-quantized": (
        packed_int4,
        compressed("pack-quantized", "int", 4, "group", group_size=32),
    ),
}
"""Format whose tensors are written here -> how, and its `quantization_config`."""


def _torchao(name: str, **settings: Any) -> Any:
    import torchao.quantization as library

    return TorchAoConfig(getattr(library, name)(**settings))


BY_LIBRARY: dict[str, Callable[[], Any]] = {
    "torchao Int8WeightOnlyConfig": lambda: _torchao("Int8WeightOnlyConfig"),
    "torchao IntxWeightOnlyConfig": lambda: _torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4),
    "bitsandbytes nf4": lambda: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True
    ),
    "bitsandbytes fp4": lambda: BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4"),
    "bitsandbytes int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
}
"""Format that a library writes -> its settings."""


def needs(package: str) -> None:
    """Skip a test whose package is not there; the extra `test` has all of them."""
    if find_spec(package) is None:
        pytest.skip(f"{package} is not installed (the extra `test` has it)")


def save_quantised(name: str, plain: Path, folder: Path) -> tuple[Path, Path]:
    """Save the weights of a plain folder in a format, and the plain weights that these stand for.

    Returns the folders of both.
    """
    quantised, meant = folder / "quantised", folder / "meant"
    shutil.copytree(plain, meant)
    tensors = load_file(plain / "model.safetensors")
    projections = [key for key in tensors if key.endswith("proj.weight")]
    if name in BY_HAND:
        quantise, settings = BY_HAND[name]
        shutil.copytree(plain, quantised)
        written = {key: tensor for key, tensor in tensors.items() if key not in projections}
        for key in projections:
            parts, tensors[key] = quantise(tensors[key])
            written |= {f"{key.removesuffix('weight')}{part}": tensor.contiguous() for part, tensor in parts.items()}
        save_file(written, quantised / "model.safetensors", {"format": "pt"})
        config = json.loads((quantised / "config.json").read_text())
        (quantised / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    else:
        model = AutoModelForCausalLM.from_pretrained(plain, quantization_config=BY_LIBRARY[name](), device_map="cpu")
        model.save_pretrained(quantised)
        for key in projections:
            tensors[key] = _meant(model.get_submodule(key.removesuffix(".weight")))
    save_file(tensors, meant / "model.safetensors", {"format": "pt"})
    return quantised, meant


def _meant(module: Any) -> Tensor:
    """Compute the weight that a quantised projection stands for, without the package's own dequantisation where that is short."""
    weight = module.weight
    if hasattr(weight, "SCB"):  # rows of 8 bits, whose largest number is SCB
        return (weight.data.double() * weight.SCB.double().unsqueeze(1) / 127).float()
    if hasattr(weight, "quant_state"):
        # What the projection makes of the unit vectors: in training mode, where no kernel for inference is used.
        module.train()
        with torch.no_grad():
            return module(torch.eye(module.in_features)).T.contiguous()
    if hasattr(weight, "zero_point") and hasattr(weight, "qdata"):
        scale, zero = weight.scale.double(), weight.zero_point
        scale = scale.reshape(len(scale), -1)
        zero = torch.zeros_like(scale) if zero is None else zero.double().reshape(len(scale), -1)
        spread = weight.qdata.shape[1] // scale.shape[1]
        return (
            (weight.qdata.double() - zero.repeat_interleave(spread, 1)) * scale.repeat_interleave(spread, 1)
        ).float()
    raise AssertionError(f"a weight of another kind: {type(weight).__name__}")


FP4 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
"""Numbers of 4 bits: a sign, two bits of exponent, one of mantissa."""


def save_packed_experts(folder: Path) -> dict[str, Tensor]:
    """Save a tiny gpt-oss whose experts are in MXFP4: groups of 32 with a power of two, two numbers a byte, the first lower.

    Returns the plain weights that the file stands for.
    """
    torch.manual_seed(0)
    config = GptOssConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        max_position_embeddings=64,
        pad_token_id=0,
        layer_types=["full_attention"] * 2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    meant = load_file(folder / "model.safetensors")
    written = dict(meant)
    for key in [key for key in meant if key.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        groups = written.pop(key).transpose(1, 2).unflatten(2, (-1, 32))
        power = groups.abs().amax(-1, keepdim=True).log2().floor() - 2
        nearest = (groups / 2**power).unsqueeze(-1).sub(FP4).abs().argmin(-1)
        meant[key] = (FP4[nearest] * 2**power).flatten(2).transpose(1, 2).contiguous()
        written[f"{key}_blocks"] = (nearest[..., 0::2] | nearest[..., 1::2] << 4).to(torch.uint8)
        written[f"{key}_scales"] = (power.squeeze(-1) + 127).to(torch.uint8)
    save_file(written, folder / "model.safetensors", {"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(settings))
    return meant
