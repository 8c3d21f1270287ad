"""Find the sites of a Hugging Face causal language model by its row in the architecture table."""

from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from bigcircuit.errors import UserError
from bigcircuit.model.architectures import ARCHITECTURES, Architecture
from bigcircuit.model.granularity import LayerShape


@dataclass(frozen=True)
class Layer:
    """One decoder layer: the module itself, its two site projections and its widths."""

    module: nn.Module
    attention: nn.Module
    mlp: nn.Module
    shape: LayerShape


@dataclass(frozen=True)
class FrozenModel:
    """An ordinary Hugging Face model and where its sites are. The model is never changed."""

    model: Any
    architecture: Architecture
    layers: tuple[Layer, ...]
    head: nn.Module
    """The vocabulary projection."""
    device: torch.device
    """Where inputs have to be."""
    engine: Any = None
    """The DeepSpeed engine that holds the weights in pieces; None where they are whole."""

    def settle(self) -> None:
        """To be called after a backward pass: weights that ZeRO gathered for it and still holds are let go."""
        if self.engine is not None:
            self.engine.optimizer.release_backward_leftovers()

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        return tuple(layer.shape for layer in self.layers)


def architecture_of(config: Any) -> Architecture:
    """The table row of a Hugging Face config. Raises UserError, saying how to add it, if there is none."""
    row = ARCHITECTURES.get(config.model_type)
    if row is None:
        raise UserError(
            f"model type {config.model_type!r} is not in the architecture table; add one row to ARCHITECTURES in "
            f"bigcircuit/frozen/architectures.py (known: {', '.join(sorted(ARCHITECTURES))})"
        )
    return row


def find_sites(model: Any) -> FrozenModel:
    """Locate layers and sites of a loaded (or meta-device) causal language model; a PEFT adapter may sit inside it."""
    row = architecture_of(model.config)
    layers = tuple(_layer(module, row, model.config) for module in attrgetter(row.layers)(model))
    return FrozenModel(model, row, layers, model.get_output_embeddings(), next(model.parameters()).device)


def _layer(module: nn.Module, row: Architecture, config: Any) -> Layer:
    attention, mlp = attrgetter(row.attention)(module), attrgetter(row.mlp)(module)
    heads = config.num_attention_heads
    site = in_features(attention)
    return Layer(
        module,
        attention,
        mlp,
        LayerShape(
            heads=heads,
            kv_heads=kv_heads(config),
            head_dim=site // heads,
            intermediate=in_features(mlp),
            hidden=out_features(mlp),
        ),
    )


def kv_heads(config: Any) -> int:
    """Key/value heads under the several names that configs give them."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    for name in ("num_key_value_heads", "num_kv_heads"):
        if getattr(config, name, None):
            return getattr(config, name)
    return config.num_attention_heads


def in_features(projection: nn.Module) -> int:
    """Input width of a projection: a Linear, an adapted one, or GPT-2's Conv1D, which calls it `nx`."""
    return projection.in_features if hasattr(projection, "in_features") else projection.nx


def out_features(projection: nn.Module) -> int:
    """Output width of a projection; Conv1D calls it `nf`."""
    return projection.out_features if hasattr(projection, "out_features") else projection.nf
