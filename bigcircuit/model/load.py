"""Load the base model: config, tokenizer, frozen weights with an adapter, or the module tree without weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from bigcircuit.config.schema import ModelConfig
from bigcircuit.errors import UserError, first_line
from bigcircuit.model.deepspeed_config import DeepSpeedConfig, check_weights, pieces_on, with_auto_values
from bigcircuit.model.layer_stream import streamed
from bigcircuit.model.sites import FrozenModel, architecture_of, find_sites
from bigcircuit.model.weight_files import EMBEDDED, stored_dtype
from bigcircuit.model.zero3 import loading_sharded, shard

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_path(config: ModelConfig) -> str:
    """Return the folder or hub id of the base model; `embedded` names the small model that comes with the package.

    Raises UserError for a path that looks like a folder and does not exist.
    """
    if config.path == "embedded":
        return str(EMBEDDED)
    folder = Path(config.path).expanduser()
    if config.path.startswith((".", "/", "~")) and not folder.is_dir():
        raise UserError(f"model.path {config.path}: no such folder; give a folder with config.json or a hub id")
    return str(folder) if folder.is_dir() else config.path


def load_config(config: ModelConfig) -> Any:
    """Load the Hugging Face config of the base model, without weights.

    Raises UserError if the config cannot be opened or its architecture is not in the table.
    """
    from transformers import AutoConfig

    hf = _open(AutoConfig, config)
    text = hf.get_text_config(decoder=True)
    architecture_of(text)
    return text


def load_tokenizer(config: ModelConfig) -> Any | None:
    """Load the tokenizer of the base model; None if the model has none (pairs are then token ids).

    Raises UserError if the tokenizer cannot be opened.
    """
    from transformers import AutoTokenizer

    path = Path(resolve_path(config))
    if path.is_dir() and not any((path / name).exists() for name in _TOKENIZER_FILES):
        return None
    return _open(AutoTokenizer, config)


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load_frozen(
    config: ModelConfig,
    device: torch.device | str = "cpu",
    sharding: DeepSpeedConfig | None = None,
    meta: FrozenModel | None = None,
) -> FrozenModel:
    """Load the base model with its adapter, freeze it and find its sites. Raises UserError if something cannot be opened.

    Weights that need no cast stay in their files, mapped into memory, unless they are moved to a GPU.

    sharding: DeepSpeed config of stage 3, to divide the weights over the ranks; None to load all weights on every rank.
    meta: the model as from `skeleton`, if it is built already.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    stored = stored_dtype(config)
    check_weights(config, sharding, stored)
    full = None if sharding is None else with_auto_values(sharding, meta or skeleton(config))
    in_files = stored == DTYPES[config.dtype]
    with loading_sharded(None if in_files else full, DTYPES[config.dtype]):
        model = _open(
            AutoModelForCausalLM,
            config,
            dtype=DTYPES[config.dtype],
            attn_implementation=config.attention,
            use_safetensors=True,  # the other format is pickle
        )
    if config.adapter:
        model = _adapt(model, config.adapter)
    model.requires_grad_(False)
    model.eval()
    frozen, device = find_sites(model), torch.device(device)
    on_disk = config.weights == "stream" or (sharding is not None and pieces_on(sharding) == "nvme")
    if on_disk and (sharding is None or device.type == "cpu"):
        return streamed(frozen, device)  # ranks on CPU share the pages of the files, so there is nothing to gather
    if full is not None:
        return shard(frozen, device, full)
    return replace(frozen, model=model.to(device), device=device)


def skeleton(config: ModelConfig, hf_config: Any = None) -> FrozenModel:
    """Build the base model on the meta device: modules, shapes and names without weights.

    hf_config: as from `load_config`, if it is read already.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(hf_config or load_config(config), dtype=DTYPES[config.dtype])
    return find_sites(model.eval().requires_grad_(False))


def _adapt(model: Any, adapter: str) -> Any:
    """Insert a PEFT adapter and return the adapted Hugging Face model; its module paths stay those of the table."""
    from peft import PeftConfig, PeftModel

    try:
        kind = PeftConfig.from_pretrained(adapter)
        # Virtual tokens are not weights: they would be lost with the wrapper, which get_base_model removes.
        adapted = None if kind.is_prompt_learning else PeftModel.from_pretrained(model, adapter, is_trainable=False)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"model.adapter {adapter}: no PEFT adapter could be opened ({first_line(error)})") from error
    if adapted is None:
        raise UserError(f"model.adapter {adapter}: {kind.peft_type} adds virtual tokens; use an adapter on the weights")
    return adapted.get_base_model()


def _open(factory: Any, model: ModelConfig, **arguments: Any) -> Any:
    """Call `from_pretrained` of a transformers class. Raises UserError if the files cannot be opened."""
    path = resolve_path(model)
    try:
        return factory.from_pretrained(path, revision=model.revision, trust_remote_code=False, **arguments)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise UserError(f"model.path {path}: {first_line(error)}") from error
