"""Resolve the base model: all that is known before its weights are loaded, read and checked once."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from bigcircuit.config.schema import ModelConfig
from bigcircuit.model.adapter import adapt
from bigcircuit.model.deepspeed_config import DeepSpeedConfig, check_weights, pieces_on, read_deepspeed
from bigcircuit.model.granularity import GRANULARITIES, LayerShape, node_counts
from bigcircuit.model.load import DTYPES, attention_of, load_config, load_frozen, load_tokenizer, skeleton
from bigcircuit.model.sites import FrozenModel
from bigcircuit.model.tensor_check import check_weight_tensors
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
        return self.stored == DTYPES[self.config.dtype]

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

    def changed(self, config: ModelConfig) -> "ResolvedModel":
        """Return the model with other settings for the same files, such as another dtype."""
        config = config.model_copy(update={"attention": self.config.attention})
        if config == self.config:
            return self
        return replace(self, config=config, skeleton=skeleton(config, self.hf_config))

    def load(self, device: torch.device) -> FrozenModel:
        """The model with its weights, frozen. Raises UserError."""
        return load_frozen(self.config, device, self.deepspeed, self.skeleton)


def resolve_model(config: ModelConfig, deepspeed: str | None = None) -> ResolvedModel:
    """Read config, tokenizer and module tree of a base model, and the DeepSpeed config at a path.

    The tensors in the files of the model and of its adapter are compared with the module tree by their headers. Raises UserError.
    """
    hf_config, tokenizer = load_config(config), load_tokenizer(config)
    settings, stored = read_deepspeed(deepspeed, config.device), stored_dtype(config)
    check_weights(config, settings, stored)
    meta = skeleton(config, hf_config)
    config = config.model_copy(update={"attention": attention_of(meta)})
    checked = check_weight_tensors(config, meta.model)
    unused = checked.unused
    if config.adapter:
        base = skeleton(config, hf_config).model if checked.model is meta.model else checked.model
        unused += adapt(base, config.adapter).unused
    return ResolvedModel(
        config=config,
        hf_config=hf_config,
        tokenizer=tokenizer,
        skeleton=meta,
        deepspeed=settings,
        stored=stored,
        unused=unused,
    )
