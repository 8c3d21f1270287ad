"""Open checkpoints: config and tokenizer first, weights last, everything frozen."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from bigcircuit.config.schema import ModelConfig
from bigcircuit.errors import UserError
from bigcircuit.model.sites import FrozenModel, architecture_of, find_sites
from bigcircuit.model.zero3 import DeepSpeedConfig, completed, loading_sharded, shard

EMBEDDED = Path(__file__).parents[1] / "embedded" / "model"
"""Folder of the small model that comes with the package, in transformers format."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve(config: ModelConfig) -> str:
    """The folder or hub id to open; the word `embedded` stands for the small model that comes with the package.

    Raises UserError for what looks like a folder and is none.
    """
    if config.path == "embedded":
        return str(EMBEDDED)
    folder = Path(config.path).expanduser()
    if config.path.startswith((".", "/", "~")) and not folder.is_dir():
        raise UserError(f"model.path {config.path}: no such folder; give a folder with config.json or a hub id")
    return str(folder) if folder.is_dir() else config.path


def load_config(config: ModelConfig) -> Any:
    """The Hugging Face config of the base model, with its architecture checked. Loads no weights; raises UserError."""
    from transformers import AutoConfig

    hf = _open(AutoConfig, config)
    text = hf.get_text_config(decoder=True)
    architecture_of(text)
    return text


def load_tokenizer(config: ModelConfig) -> Any | None:
    """The tokenizer of the base model; None when the checkpoint has none (ids in, ids out). Raises UserError."""
    from transformers import AutoTokenizer

    path = Path(resolve(config))
    if path.is_dir() and not any((path / name).exists() for name in _TOKENIZER_FILES):
        return None
    return _open(AutoTokenizer, config)


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load_frozen(
    config: ModelConfig, device: torch.device | str = "cpu", sharding: DeepSpeedConfig | None = None
) -> FrozenModel:
    """Load the model, put the adapter on if there is one, freeze it, and find its sites. Raises UserError.

    sharding: a DeepSpeed config of stage 3, for weights in pieces on the ranks; without it every rank has them whole.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    if sharding is not None:
        sharding = completed(sharding, skeleton(config))
    with loading_sharded(sharding, DTYPES[config.dtype]):
        model = _open(
            AutoModelForCausalLM,
            config,
            dtype=DTYPES[config.dtype],
            attn_implementation=config.attention,
            use_safetensors=True,  # the other format is a pickle
        )
    if config.adapter:
        model = _adapt(model, config.adapter)
    model.requires_grad_(False)
    model.eval()
    return (
        find_sites(model.to(device)) if sharding is None else shard(find_sites(model), torch.device(device), sharding)
    )


def skeleton(config: ModelConfig) -> FrozenModel:
    """The same module tree on the meta device: shapes and names without a byte of weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_config(config), dtype=DTYPES[config.dtype])
    return find_sites(model.eval().requires_grad_(False))


def _adapt(model: Any, adapter: str) -> Any:
    """Put a PEFT adapter on the model and return the adapted Hugging Face model, its table row still valid."""
    from peft import PeftConfig, PeftModel

    try:
        kind = PeftConfig.from_pretrained(adapter)
        # Virtual tokens are no part of the weights: such an adapter would be left behind with its wrapper.
        adapted = None if kind.is_prompt_learning else PeftModel.from_pretrained(model, adapter, is_trainable=False)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"model.adapter {adapter}: no PEFT adapter could be opened ({_first_line(error)})") from error
    if adapted is None:
        raise UserError(f"model.adapter {adapter}: {kind.peft_type} adds virtual tokens; use an adapter on the weights")
    return adapted.get_base_model()


def _open(factory: Any, model: ModelConfig, **arguments: Any) -> Any:
    path = resolve(model)
    try:
        return factory.from_pretrained(path, revision=model.revision, trust_remote_code=False, **arguments)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"model.path {path}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
