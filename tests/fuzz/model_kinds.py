"""Kinds of inputs that models are made of: their folders, quantised weights, adapters, exports, and DeepSpeed files."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from bigcircuit.config.schema import ModelConfig
from bigcircuit.config.shipped import DEEPSPEED, shipped_file, shipped_names
from bigcircuit.export.loading import load_exported
from bigcircuit.model.adapter import adapt
from bigcircuit.model.deepspeed_config import read_deepspeed, with_auto_values
from bigcircuit.model.load import load_config, load_tokenizer, skeleton
from bigcircuit.model.resolve import resolve_model
from bigcircuit.model.weight_files import EMBEDDED
from tests.fuzz.harness import Kind
from tests.fuzz.mutate import as_json, damaged_bytes, damaged_json, damaged_one
from tests.helpers.exports import request_of, write_export
from tests.helpers.foreign_circuits import SIZES, TOKENS
from tests.helpers.quantised_models import BY_HAND

Read = Callable[[], Any]
_ADAPTERS = {
    "lora": LoraConfig(r=2, target_modules=["q_proj", "down_proj"]),
    "ia3": IA3Config(target_modules=["o_proj", "down_proj"], feedforward_modules=["o_proj", "down_proj"]),
}
_base: dict[str, Path] = {}
_MODEL = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24, "bos_token_id": None, "eos_token_id": None,
    "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip


def prepare(folder: Path) -> Path:
    """Make a tiny Llama, adapters of it and a compact export, unless they are there; return the folder."""
    plain = _base["plain"] = folder / "plain"
    if plain.exists():
        return folder
    LlamaForCausalLM(LlamaConfig(**TOKENS, **SIZES["llama"])).save_pretrained(plain)
    for name, kind in _ADAPTERS.items():
        get_peft_model(AutoModelForCausalLM.from_pretrained(plain), kind).save_pretrained(folder / name)
    model = resolve_model(ModelConfig(path=str(plain)))
    write_export("compact", request_of(model), folder / "compact")
    return folder


def _model_folder(random: Random, folder: Path) -> Read:
    config = damaged_json(random, _MODEL)
    (folder / "config.json").write_bytes(as_json(random, config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = (EMBEDDED / name).read_bytes()
        (folder / name).write_bytes(damaged_bytes(random, content) if random.random() < 0.1 else content)
    model = ModelConfig(path=str(folder))
    return lambda: (load_tokenizer(model), skeleton(model, load_config(model)))


def _checkpoint(random: Random, folder: Path) -> Read:
    """A model folder with weights, plain or quantised, of which one file is damaged."""
    tensors, config = (
        load_file(_base["plain"] / "model.safetensors"),
        json.loads((_base["plain"] / "config.json").read_text()),
    )
    if random.random() < 0.7:
        quantise, settings = BY_HAND[random.choice(sorted(BY_HAND))]
        for key in [key for key in tensors if key.endswith(("up_proj.weight", "q_proj.weight"))]:
            weight = tensors.pop(key).repeat(2, 2)
            tensors |= {f"{key.removesuffix('weight')}{part}": one for part, one in quantise(weight)[0].items()}
        config["quantization_config"] = damaged_json(random, settings)
    save_file({name: one.contiguous() for name, one in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    if random.random() < 0.5:
        damaged_one(random, [folder / "model.safetensors", folder / "config.json"])
    quantization = random.choice(["none", "none", "dequantise", "int8"])
    return lambda: resolve_model(ModelConfig(path=str(folder), quantization=quantization))


def _adapter(random: Random, folder: Path) -> Read:
    target = folder / "adapter"
    shutil.copytree(_base["plain"].parent / random.choice(sorted(_ADAPTERS)), target)
    config = target / "adapter_config.json"
    damaged_one(random, [target / "adapter_model.safetensors", config, config, config])
    model = ModelConfig(path=str(_base["plain"]))
    return lambda: adapt(skeleton(model).model, str(target))


@cache
def _tiny() -> Any:
    return skeleton(ModelConfig(path=str(_base["plain"])))


def _deepspeed(random: Random, folder: Path) -> Read:
    name = random.choice(shipped_names(DEEPSPEED, ".json"))
    path = folder / "ds.json"
    content = json.loads(shipped_file(DEEPSPEED, name, ".json").read_text())
    path.write_bytes(as_json(random, damaged_json(random, content)))

    def read() -> None:
        settings = read_deepspeed(str(path))
        if settings is not None:
            with_auto_values(settings, _tiny())

    return read


def _export(random: Random, folder: Path) -> Read:
    target = folder / "export"
    shutil.copytree(_base["plain"].parent / random.choice(["compact", "compact", "ia3"]), target)
    damaged_one(random, [path for path in target.iterdir() if path.suffix in (".json", ".safetensors")])
    return lambda: load_exported(target)


KINDS: dict[str, Kind] = {
    "model folders": _model_folder,
    "weights and quantised weights": _checkpoint,
    "adapters": _adapter,
    "DeepSpeed files": _deepspeed,
    "exported models": _export,
}
