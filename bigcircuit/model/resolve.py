"""Resolve the base model: all that is known before its weights are loaded, read and checked once."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from bigcircuit.config.schema import ModelConfig
from bigcircuit.model.adapter import adapt, check_layout
from bigcircuit.model.deepspeed_config import DeepSpeedConfig, check_weights, pieces_on, read_deepspeed
from bigcircuit.model.granularity import GRANULARITIES, LayerShape, node_counts
from bigcircuit.model.load import (
    DTYPES,
    attention_of,
    load_config,
    load_frozen,
    load_tokenizer,
    skeleton,
    whole_skeleton,
)
from bigcircuit.model.quantization import Quantization, quantization_of
from bigcircuit.model.sites import FrozenModel, find_sites
from bigcircuit.model.tensor_check import check_weight_tensors
from bigcircuit.model.text_part import language_part, other_parts, text_config
from bigcircuit.model.weight_files import stored_dtype


@dataclass(frozen=True)
class ResolvedModel:
    """Base model before its weights are loaded: config, tokenizer and module tree, read and checked."""

    config: ModelConfig
    """Settings, with the attention implementation that `auto` stands for."""
    hf_config: Any
    """The Hugging Face config of the language model."""
    tokenizer: Any | None
    """None if the checkpoint has none; pairs are then token ids."""
    skeleton: FrozenModel
    """The model on the meta device: modules, shapes and names without weights."""
    deepspeed: DeepSpeedConfig | None
    """DeepSpeed config if ZeRO-3 divides the weights over the ranks, else None."""
    stored: torch.dtype | None = None
    """Dtype of all weights in their files; None if they have several or are not on this machine."""
    unused: tuple[str, ...] = ()
    """Names of tensors in the files of model and adapter that the model does not use."""
    whole_config: Any = None
    """The Hugging Face config of the checkpoint, which of a multimodal one holds `hf_config`; None if that is the same."""
    quantization: Quantization = Quantization()
    """How the weights are quantised, in their files and when they are loaded."""
    not_loaded: int = 0
    """Number of tensors in the files that belong to other parts of a multimodal model than its language model."""
    adapter_notes: tuple[str, ...] = ()
    """What the user should know about the adapter, one line each."""

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        """Widths of every decoder layer."""
        return self.skeleton.shapes

    @property
    def nodes(self) -> dict[str, int]:
        """Number of nodes of the model by granularity, and of all site neurons as `total`."""
        return node_counts(self.shapes, list(GRANULARITIES))

    @property
    def stays_in_files(self) -> bool:
        """Whether loading on CPU leaves the weights in their files, mapped into memory: they need no cast."""
        return self.stored == DTYPES[self.config.dtype] and not self.quantization.loaded

    @property
    def is_read_from_disk(self) -> bool:
        """Whether each pass reads the weights from a disk anew: they flow from their files, or ranks keep their pieces there."""
        return self.config.weights == "stream" or (self.deepspeed is not None and pieces_on(self.deepspeed) == "nvme")

    @property
    def unused_line(self) -> str | None:
        """One line about tensors in the files that the model does not use, None if there are none."""
        if not self.unused:
            return None
        files = f"{self.config.path}{f' and {self.config.adapter}' if self.config.adapter else ''}"
        return (
            f"{files}: {len(self.unused)} tensor(s) in the files are not used by the model, the first: {self.unused[0]}"
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines about how the weights are opened, where they are more than the plain weights of a language model."""
        language = None
        if self.whole_config is not None:
            language = (
                f"opened on its language model ({self.hf_config.model_type}) alone: {self.not_loaded} tensor(s) of the other parts "
                "are not loaded"
            )
        return tuple(line for line in (language, self.quantization.line, *self.adapter_notes, self.unused_line) if line)

    def changed(self, config: ModelConfig) -> "ResolvedModel":
        """Return the model with other settings for the same files, such as another dtype."""
        config = config.model_copy(update={"attention": self.config.attention})
        if config == self.config:
            return self
        hf_config = self.whole_config or self.hf_config
        quantization = quantization_of(config, hf_config, self.deepspeed is not None)
        return replace(self, config=config, skeleton=skeleton(config, hf_config), quantization=quantization)

    def load(self, device: torch.device) -> FrozenModel:
        """The model with its weights, frozen. Raises UserError."""
        hf_config = self.whole_config or self.hf_config
        return load_frozen(self.config, device, self.deepspeed, self.skeleton, hf_config)


def resolve_model(config: ModelConfig, deepspeed: str | None = None) -> ResolvedModel:
    """Read config, tokenizer and module tree of a base model, and the DeepSpeed config at a path.

    The tensors in the files of the model and of its adapter are compared with the module tree by their headers. Raises UserError.
    """
    hf_config = load_config(config)
    settings, stored = read_deepspeed(deepspeed, config.device), stored_dtype(config)
    quantization = quantization_of(config, hf_config, settings is not None)
    tokenizer = load_tokenizer(config)
    check_weights(config, settings, stored)
    whole, text = whole_skeleton(config, hf_config), text_config(hf_config)
    meta = find_sites(language_part(whole), config.architecture == "guess")
    config = config.model_copy(update={"attention": attention_of(meta)})
    others = other_parts(hf_config)
    unused: tuple[str, ...] = ()
    if not quantization.stored:
        checked = check_weight_tensors(config, whole)
        unused = checked.unused
    not_loaded = [name for name in unused if name.startswith(tuple(f"{part}." for part in others))]
    unused = tuple(name for name in unused if name not in not_loaded)
    said: tuple[str, ...] = ()
    if config.adapter:
        adapted = adapt(whole_skeleton(config, hf_config), config.adapter)
        check_layout(adapted, meta.shapes, config.adapter)
        unused, said = unused + adapted.unused, adapted.notes
    return ResolvedModel(
        config=config,
        hf_config=text,
        tokenizer=tokenizer,
        skeleton=meta,
        deepspeed=settings,
        stored=stored,
        unused=unused,
        whole_config=None if text is hf_config else hf_config,
        quantization=quantization,
        not_loaded=len(not_loaded),
        adapter_notes=said,
    )
