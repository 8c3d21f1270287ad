"""Load the base model: config, tokenizer, frozen weights with an adapter, or the module tree without weights."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bigcircuit.config.schema import ModelConfig
from bigcircuit.errors import UserError
from bigcircuit.model.adapter import ADAPTER_CONFIG, adapt
from bigcircuit.model.deepspeed_config import DeepSpeedConfig, check_weights, pieces_on, with_auto_values
from bigcircuit.model.layer_stream import streamed
from bigcircuit.model.library_errors import explain_library_errors, quieten_libraries
from bigcircuit.model.quantization import finish_loading, quantization_of
from bigcircuit.model.sites import FrozenModel, architecture_of, find_sites
from bigcircuit.model.tensor_check import check_loading_info, opening_weights
from bigcircuit.model.text_part import check_multimodal, language_part, model_class, text_config
from bigcircuit.model.weight_files import EMBEDDED, model_folder, stored_dtype
from bigcircuit.model.zero3 import loading_sharded, shard

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_path(config: ModelConfig) -> str:
    """Return the folder or hub id of the base model; `embedded` names the small model that comes with the package.

    Raises UserError for a path that looks like a folder and does not exist.
    """
    if config.path == "embedded":
        return str(EMBEDDED)
    folder = Path(config.path).expanduser()
    if (config.path.startswith((".", "/", "~")) or config.path.count("/") > 1) and not folder.is_dir():
        raise UserError(f"model.path {config.path}: no such folder; give a folder with config.json or a hub id")
    return str(folder) if folder.is_dir() else config.path


def load_config(config: ModelConfig) -> Any:
    """Load the Hugging Face config of the base model, without weights; of a multimodal checkpoint that of the whole.

    Raises UserError if the config cannot be opened or its architecture is not in the table.
    """
    from transformers import AutoConfig

    folder = model_folder(config.path, config.revision)
    if folder is not None and (folder / ADAPTER_CONFIG).exists():
        raise UserError(
            f"model.path {config.path}: holds {ADAPTER_CONFIG}, so it is an adapter; set model.adapter to it and "
            "model.path to the model that it was trained on"
        )
    hf = _open(AutoConfig, config, "config.json")
    with explain_library_errors(f"model.path {config.path}: config.json cannot be read", folder, "mend it"):
        text = text_config(hf)
    architecture_of(text, config.architecture == "guess")
    for name, expected in _FIXED.items():
        if getattr(hf, name, expected) != expected:
            raise UserError(f"model.path {config.path}: config.json has {name} {getattr(hf, name)!r}; take it out")
    check_multimodal(hf, f"model.path {config.path}")
    layers = getattr(text, "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > _MOST_LAYERS:
        raise UserError(
            f"model.path {config.path}: num_hidden_layers is {layers} in config.json, above {_MOST_LAYERS:,}; mend it"
        )
    return hf


def load_tokenizer(config: ModelConfig) -> Any | None:
    """Load the tokenizer of the base model; None if the model has none (pairs are then token ids).

    Raises UserError if the tokenizer cannot be opened.
    """
    from transformers import AutoTokenizer

    path = Path(resolve_path(config))
    if path.is_dir() and not any((path / name).exists() for name in _TOKENIZER_FILES):
        return None
    return _open(AutoTokenizer, config, "the tokenizer", try_out=lambda tokenizer: tokenizer("One, 2: three!"))


_MOST_LAYERS = 1000
"""Building the modules of more takes minutes, and no model has so many."""
_FIXED = {"transformers_weights": None, "output_attentions": False, "return_dict": True}
"""Settings of config.json that would have other weights loaded than those that are hashed, or the model return something else."""
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")


def load_frozen(
    config: ModelConfig,
    device: torch.device | str = "cpu",
    sharding: DeepSpeedConfig | None = None,
    meta: FrozenModel | None = None,
    hf_config: Any = None,
) -> FrozenModel:
    """Load the base model with its adapter, freeze it and find its sites. Raises UserError if something cannot be opened.

    Weights that need no cast stay in their files, mapped into memory, unless they are moved to a GPU.

    sharding: DeepSpeed config of stage 3, to divide the weights over the ranks; None to load all weights on every rank.
    meta: the model as from `skeleton`, if it is built already. hf_config: as from `load_config`, if it is read already.
    """
    from transformers import GenerationConfig

    hf_config = deepcopy(hf_config or load_config(config))
    stored, meta = stored_dtype(config), meta or skeleton(config, hf_config)
    quantization = quantization_of(config, hf_config, sharding is not None)
    check_weights(config, sharding, stored)
    full = None if sharding is None else with_auto_values(sharding, meta)
    in_files = stored == DTYPES[config.dtype]
    with loading_sharded(None if in_files else full, DTYPES[config.dtype]), opening_weights(config):
        model, info = model_class(hf_config).from_pretrained(
            resolve_path(config),
            revision=config.revision,
            trust_remote_code=False,
            dtype=DTYPES[config.dtype],
            attn_implementation=attention_of(meta),
            use_safetensors=True,  # the other format is pickle
            generation_config=GenerationConfig(),  # nothing is generated, so its file need not be readable
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told in the next line
            **quantization.arguments(hf_config, device),
        )
    check_loading_info(config, info)
    finish_loading(model, quantization, DTYPES[config.dtype])
    if config.adapter:
        model = adapt(model, config.adapter).model
    model.requires_grad_(False)
    model.eval()
    frozen, device = find_sites(language_part(model), config.architecture == "guess"), torch.device(device)
    on_disk = config.weights == "stream" or (sharding is not None and pieces_on(sharding) == "nvme")
    if on_disk and (sharding is None or device.type == "cpu"):
        return streamed(frozen, device)  # ranks on CPU share the pages of the files, so there is nothing to gather
    if full is not None:
        return shard(frozen, device, full)
    return replace(frozen, model=frozen.model.to(device), device=device)


def skeleton(config: ModelConfig, hf_config: Any = None) -> FrozenModel:
    """Build the base model on the meta device: modules, shapes and names without weights, which are plain.

    hf_config: as from `load_config`, if it is read already.
    """
    return find_sites(language_part(whole_skeleton(config, hf_config)), config.architecture == "guess")


def whole_skeleton(config: ModelConfig, hf_config: Any = None) -> Any:
    """Build the Hugging Face model of a checkpoint on the meta device, as `skeleton`; of a multimodal one with its wrapper."""
    quieten_libraries()
    settings = deepcopy(hf_config or load_config(config))  # transformers writes the attention into it
    chosen = _attention(config, settings)
    subject = f"model.path {config.path}: no model can be built from config.json"
    folder = model_folder(config.path, config.revision)
    with torch.device("meta"), explain_library_errors(subject, folder, "mend it or copy it again"):
        model = model_class(settings).from_config(settings, dtype=DTYPES[config.dtype], **chosen)
    return model.eval().requires_grad_(False)


def _attention(config: ModelConfig, hf_config: Any) -> dict[str, str]:
    """Return the argument that chooses the attention implementation, none where transformers chooses. Raises UserError."""
    if getattr(hf_config.get_text_config(decoder=True), "attn_logit_softcapping", None) is None:
        return {} if config.attention == "auto" else {"attn_implementation": config.attention}
    # Releases of transformers before 5.23 take sdpa for such models, which leaves the softcap out.
    if config.attention == "sdpa":
        raise UserError("model.attention sdpa: leaves out the attn_logit_softcapping of this model; use eager")
    return {"attn_implementation": "eager"}


def attention_of(frozen: FrozenModel) -> str:
    """Return the attention implementation of a model; in a skeleton that which `model.attention` stands for."""
    return frozen.model.config._attn_implementation


def _open(factory: Any, model: ModelConfig, what: str, try_out: Callable[[Any], object] | None = None) -> Any:
    """Call `from_pretrained` of a transformers class. Raises UserError.

    what: name of the part that is read. try_out: is called with what was opened, because some faults show at the first use.
    """
    path = resolve_path(model)
    folder = model_folder(model.path, model.revision)
    subject, remedy = (
        f"model.path {path}: {what} cannot be opened",
        "mend the file, or copy or download the model again",
    )
    if folder is None:
        subject = (
            f"model.path {path}: there is no such folder here, and {what} of a hub model of this name cannot be opened"
        )
        remedy = "name a folder with config.json as ./NAME or by its whole path, or a hub id as OWNER/NAME"
    with explain_library_errors(subject, folder, remedy):
        opened = factory.from_pretrained(path, revision=model.revision, trust_remote_code=False)
        if try_out is not None:
            try_out(opened)
    return opened
