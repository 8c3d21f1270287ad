"""Write folders of models of real shapes with random bfloat16 weights, in transformers format, from nothing but a table.

    python -m benchmarks.large_models FOLDER SHAPE [--sibling] [--tokenizer FOLDER] [--layers N]

Weights are normal with a standard deviation of 0.02, those of norms with a mean of 1. A shard holds one decoder layer or what
comes before or after the layers, so no more than one is in memory. Every shard is drawn in whole from a generator of its own, so
no two layers are equal, and a shard that was written stays when the same command runs again: a folder whose writing was
interrupted ends with the bytes of one that was not. The index is written last, so an incomplete folder does not open.
"""

import argparse
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PretrainedConfig

from bigcircuit.errors import UserError
from bigcircuit.io.files import (
    remove,
    removing,
    reporting_disk_errors,
    sync_dir,
    temporary_path,
    write_bytes,
    write_json,
)
from bigcircuit.model.load import EMBEDDED
from bigcircuit.seeding import mix

INDEX = "model.safetensors.index.json"
SCALE = 0.02
"""Standard deviation of the weights."""
TOKENIZER_FILES = (
    "tokenizer.json tokenizer_config.json tokenizer.model special_tokens_map.json vocab.json merges.txt".split()
)
_LAYER = re.compile(r"\.layers\.(\d+)\.")
_EXPERTS = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)")


class Shape(NamedTuple):
    """Sizes of a model, whose embedding and head are two matrices."""

    model_type: str
    layers: int
    hidden: int
    ffn: int
    """Neurons of an MLP, or of an expert."""
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    rope_theta: float
    experts: int = 0
    """Experts a layer; 0 for a dense model."""
    experts_per_token: int = 0


SHAPES = {
    "llama-8b": Shape(
        model_type="llama", layers=32, hidden=4096, ffn=14_336, heads=32, kv_heads=8, head_dim=128, vocabulary=128_256,
        rope_theta=500_000.0,
    ),
    "qwen3-32b": Shape(
        model_type="qwen3", layers=64, hidden=5120, ffn=25_600, heads=64, kv_heads=8, head_dim=128, vocabulary=151_936,
        rope_theta=1_000_000.0,
    ),
    "llama-70b": Shape(
        model_type="llama", layers=80, hidden=8192, ffn=28_672, heads=64, kv_heads=8, head_dim=128, vocabulary=128_256,
        rope_theta=500_000.0,
    ),
    "qwen3-30b-a3b": Shape(
        model_type="qwen3_moe", layers=48, hidden=2048, ffn=768, heads=32, kv_heads=4, head_dim=128, vocabulary=151_936,
        rope_theta=1_000_000.0, experts=128, experts_per_token=8,
    ),
}  # fmt: skip
"""Name -> shape of Llama 3.1 8B, Qwen3 32B, Llama 3.1 70B and Qwen3 30B-A3B."""
SHRINK = {"llama-8b": 32, "qwen3-32b": 32, "llama-70b": 64, "qwen3-30b-a3b": 32}
"""Name -> factor by which the sibling's widths and vocabulary are smaller: hidden sizes are then 64 to 160."""
SIBLING_LAYERS, SIBLING_HEAD_DIM = 4, 16


def sibling(name: str) -> Shape:
    """Return a small shape of a few MB with as many parameters a layer and the same proportion of embedding to layer.

    The widths of residual stream, attention and MLP and the vocabulary are those of the shape divided by one factor, so every
    matrix of a layer is smaller by the factor squared, as the embedding is; heads are grouped likewise where that is possible.
    """
    shape, factor = SHAPES[name], SHRINK[name]
    narrower = factor * SIBLING_HEAD_DIM // shape.head_dim
    return shape._replace(
        layers=SIBLING_LAYERS, hidden=shape.hidden // factor, ffn=shape.ffn // factor, heads=shape.heads // narrower,
        kv_heads=max(1, shape.kv_heads // narrower), head_dim=SIBLING_HEAD_DIM, vocabulary=shape.vocabulary // factor,
    )  # fmt: skip


def config_of(shape: Shape) -> PretrainedConfig:
    """Return the Hugging Face config of a shape."""
    mixture: dict[str, Any] = (
        dict(
            num_experts=shape.experts,
            num_experts_per_tok=shape.experts_per_token,
            moe_intermediate_size=shape.ffn,
            norm_topk_prob=True,
        )  # fmt: skip
        if shape.experts
        else {}
    )
    return AutoConfig.for_model(
        shape.model_type, vocab_size=shape.vocabulary, hidden_size=shape.hidden, intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim, max_position_embeddings=8192, tie_word_embeddings=False, bos_token_id=0, eos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta}, dtype="bfloat16", **mixture,
    )  # fmt: skip


def on_meta(shape: Shape) -> torch.nn.Module:
    """Build the model of a shape on the meta device: modules, names and shapes without weights."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config_of(shape))


def tensors_on_disk(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor of the files, in the order of the model.

    Files name tensors as the model does, but hold one matrix for each projection of each expert, where the model stacks them.
    """
    found = {}
    for name, tensor in on_meta(shape).state_dict().items():
        stacked = _EXPERTS.fullmatch(name)
        if stacked is None:
            found[name] = tuple(tensor.shape)
            continue
        projections = ("gate_proj", "up_proj") if stacked[2] == "gate_up_proj" else ("down_proj",)
        experts, rows, columns = tensor.shape
        for expert in range(experts):
            for projection in projections:
                found[f"{stacked[1]}.{expert}.{projection}.weight"] = (rows // len(projections), columns)
    return found


def shards(shape: Shape) -> list[dict[str, tuple[int, ...]]]:
    """Divide the tensors into what one file holds: a decoder layer, or the tensors before or after the layers."""

    def layer(item: tuple[str, tuple[int, ...]]) -> str | None:
        match = _LAYER.search(item[0])
        return match and match[1]

    return [dict(tensors) for _, tensors in groupby(tensors_on_disk(shape).items(), layer)]


def draw(tensors: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """Draw the tensors of a shard from one generator."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.empty(size, dtype=torch.bfloat16).normal_(float(len(size) == 1), SCALE, generator=generator)
        for name, size in tensors.items()
    }


def is_complete(path: Path, tensors: dict[str, tuple[int, ...]]) -> bool:
    """Return whether a file holds the tensors of a shard. It is opened, which compares its length with its header."""
    if not path.exists():
        return False
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == tensors  # noqa: SIM118
    except SafetensorError:
        return False


def write_shard(path: Path, tensors: dict[str, tuple[int, ...]], seed: int) -> None:
    """Write a shard under a temporary name, sync and rename it."""
    temporary = temporary_path(path)
    with reporting_disk_errors(path), removing(temporary):
        save_file(draw(tensors, seed), temporary, {"format": "pt"})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_dir(path.parent)


def copy_tokenizer(source: Path, folder: Path, vocabulary: int) -> None:
    """Copy the files of a tokenizer.

    Raises UserError if the folder has none, or if its vocabulary is larger than the model's.
    """
    found = [source / name for name in TOKENIZER_FILES if (source / name).exists()]
    if not found:
        raise UserError(f"--tokenizer {source}: no tokenizer.json or tokenizer.model is there; give a folder with one")
    if (size := len(AutoTokenizer.from_pretrained(source))) > vocabulary:
        raise UserError(f"--tokenizer {source}: its vocabulary of {size} is larger than the model's {vocabulary}")
    for path in found:
        write_bytes(folder / path.name, path.read_bytes())


def write_folder(folder: Path, shape: Shape, tokenizer: Path = EMBEDDED) -> Iterator[str]:
    """Write the folder of a model; yields a line a shard with the time left.

    Raises UserError if the folder holds a model of another shape, or if the tokenizer does not fit.
    """
    config = config_of(shape)
    config.architectures = [type(on_meta(shape)).__name__]
    text = config.to_json_string(use_diff=False).encode()
    path = folder / "config.json"
    if path.exists() and path.read_bytes() != text:
        raise UserError(f"{path}: the folder holds a model of another shape; give a new folder")
    copy_tokenizer(tokenizer, folder, shape.vocabulary)
    write_bytes(path, text)
    for left in folder.glob(".model-*.tmp"):  # by a process that was killed
        remove(left)
    parts = shards(shape)
    names = [f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors" for number in range(len(parts))]
    sizes = [sum(2 * torch.Size(size).numel() for size in part.values()) for part in parts]
    start, written = time.monotonic(), 0
    for number, (name, part) in enumerate(zip(names, parts, strict=True)):
        if is_complete(folder / name, part):
            yield f"{name}: kept"
            continue
        write_shard(folder / name, part, mix(number))
        written += sizes[number]
        left = sum(sizes[number + 1 :]) * (time.monotonic() - start) / written
        yield f"{name}: {sizes[number] / 2**20:,.1f} MiB, {left:.0f} s left"
    index = {
        "metadata": {"total_size": sum(sizes)},
        "weight_map": {tensor: name for name, part in zip(names, parts, strict=True) for tensor in part},
    }
    write_json(folder / INDEX, index)


def main(words: Sequence[str] | None = None) -> int:
    """Write a folder as the command line asks; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--sibling", action="store_true", help="the small shape of the same proportions, for tests")
    parser.add_argument(
        "--tokenizer", type=Path, default=EMBEDDED, help="folder of tokenizer files; the embedded model's"
    )
    parser.add_argument("--layers", type=int, help="decoder layers, where not all of the shape's fit on the disk")
    options = parser.parse_args(words)
    shape = sibling(options.shape) if options.sibling else SHAPES[options.shape]
    if options.layers is not None:
        shape = shape._replace(layers=options.layers)
    try:
        for line in write_folder(options.folder, shape, options.tokenizer):
            print(line, flush=True)  # noqa: T201
    except UserError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
