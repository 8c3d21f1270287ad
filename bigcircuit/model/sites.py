"""Locate the sites of a Hugging Face causal language model by its row in the architecture table."""

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
    """Decoder layer: module, output projection of attention, down projection of the MLP, widths."""

    module: nn.Module
    attention: nn.Module
    mlp: nn.Module
    shape: LayerShape


@dataclass(frozen=True)
class FrozenModel:
    """Hugging Face model and the locations of its sites. The model is never changed."""

    model: Any
    architecture: Architecture
    layers: tuple[Layer, ...]
    head: nn.Module
    """The vocabulary projection."""
    device: torch.device
    """Device of the model's inputs."""
    engine: Any = None
    """DeepSpeed engine if ZeRO-3 divides the weights over the ranks, else None."""

    def release_gathered(self) -> None:
        """Free the weights that ZeRO-3 gathered for a backward pass and still holds; to be called after each backward pass."""
        if self.engine is not None:
            self.engine.optimizer.release_backward_leftovers()

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        """Widths of every layer."""
        return tuple(layer.shape for layer in self.layers)


def architecture_of(config: Any) -> Architecture:
    """Return the table row of a Hugging Face config. Raises UserError, with how to add the row, if there is none."""
    row = ARCHITECTURES.get(config.model_type)
    if row is None:
        raise UserError(
            f"model type {config.model_type!r} is not in the architecture table; add one row to ARCHITECTURES in "
            f"bigcircuit/model/architectures.py (known: {', '.join(sorted(ARCHITECTURES))})"
        )
    return row


def find_sites(model: Any) -> FrozenModel:
    """Locate layers and sites of a causal language model, with weights or on the meta device, with or without a PEFT adapter.

    Raises UserError for a model without layers.
    """
    row = architecture_of(model.config)
    layers = tuple(_layer(module, row, model.config) for module in attrgetter(row.layers)(model))
    if not layers:
        raise UserError("the model has no decoder layer; mend the number of layers in its config.json")
    return FrozenModel(
        model=model,
        architecture=row,
        layers=layers,
        head=model.get_output_embeddings(),
        device=next(model.parameters()).device,
    )


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
    """Return the number of key/value heads, which has several names in configs."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    for name in ("num_key_value_heads", "num_kv_heads"):
        if getattr(config, name, None):
            return getattr(config, name)
    return config.num_attention_heads


def in_features(projection: nn.Module) -> int:
    """Return the input width of a projection: a Linear, an adapted Linear, or GPT-2's Conv1D (`nx`)."""
    return getattr(projection, "in_features" if hasattr(projection, "in_features") else "nx")


def out_features(projection: nn.Module) -> int:
    """Return the output width of a projection; in GPT-2's Conv1D `nf`."""
    return getattr(projection, "out_features" if hasattr(projection, "out_features") else "nf")
