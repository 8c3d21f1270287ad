"""Everything about the base model that is known before its weights are loaded, read once."""

from dataclasses import dataclass, replace
from typing import Any

import torch

from bigcircuit.config.schema import ModelConfig
from bigcircuit.model.granularity import GRANULARITIES, LayerShape, node_counts
from bigcircuit.model.load import load_config, load_frozen, load_tokenizer, skeleton
from bigcircuit.model.sites import FrozenModel
from bigcircuit.model.zero3 import DeepSpeedConfig, read_deepspeed


@dataclass(frozen=True)
class ResolvedModel:
    """A base model whose config, tokenizer and module tree are read and checked."""

    config: ModelConfig
    hf_config: Any
    """The Hugging Face config of the language model."""
    tokenizer: Any | None
    """None where the checkpoint has none: ids in, ids out."""
    skeleton: FrozenModel
    """The module tree on the meta device: shapes and names without a byte of weights."""
    deepspeed: DeepSpeedConfig | None
    """The DeepSpeed config where ZeRO-3 divides the weights; None where every rank has them whole."""

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        """Widths of every decoder layer."""
        return self.skeleton.shapes

    @property
    def nodes(self) -> dict[str, int]:
        """Nodes of the model by granularity, and as `total` site neurons."""
        return node_counts(self.shapes, list(GRANULARITIES))

    def changed(self, config: ModelConfig) -> "ResolvedModel":
        """The same files under other settings, such as another dtype."""
        if config == self.config:
            return self
        return replace(self, config=config, skeleton=skeleton(config, self.hf_config))

    def load(self, device: torch.device) -> FrozenModel:
        """The model with its weights, frozen. Raises UserError."""
        return load_frozen(self.config, device, self.deepspeed, self.skeleton)


def resolve_model(config: ModelConfig, deepspeed: str | None = None) -> ResolvedModel:
    """Read config, tokenizer and module tree of a base model, and the DeepSpeed config at a path. Raises UserError."""
    hf_config, tokenizer = load_config(config), load_tokenizer(config)
    return ResolvedModel(
        config=config,
        hf_config=hf_config,
        tokenizer=tokenizer,
        skeleton=skeleton(config, hf_config),
        deepspeed=read_deepspeed(deepspeed),
    )
