"""Locate the sites of a Hugging Face causal language model by the names of the projections that write into the residual stream."""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from bigcircuit.errors import UserError
from bigcircuit.model.architectures import (
    ARCHITECTURES,
    GUESSED,
    LATENT,
    LAYERS,
    PROJECTIONS,
    RECURRENT,
    REFUSED,
    Architecture,
)
from bigcircuit.model.granularity import ATTENTION, EXPERT, MIXER, MLP, LayerShape
from bigcircuit.model.own_architecture import declared_architecture
from bigcircuit.model.paths import ModulePaths, in_features, module_paths, out_features


@dataclass(frozen=True)
class Layer:
    """Decoder layer: its module, the modules of its sites and its units."""

    module: nn.Module
    sites: Mapping[str, nn.Module]
    """Site -> the projection whose input it is; of EXPERT the module of all experts. Without sites that the layer lacks."""
    shape: LayerShape

    @property
    def attention(self) -> nn.Module:
        """Attention output projection. Raises KeyError in a layer without attention."""
        return self.sites[ATTENTION]

    @property
    def mlp(self) -> nn.Module:
        """Down projection of the MLP. Raises KeyError in a layer without a dense MLP or shared experts."""
        return self.sites[MLP]

    def owner(self, site: str) -> nn.Module:
        """Module that holds the projection of a site: the layer itself where MLPs have no module of their own."""
        return _parent(self.module, self.sites[site])


@dataclass(frozen=True)
class FrozenModel:
    """Hugging Face model and the locations of its sites. The model is never changed."""

    model: Any
    architecture: Architecture
    path: str
    """Path of the list of decoder layers."""
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
    def paths(self) -> ModulePaths:
        """Paths of the projections of a dense model. Raises UserError for a model with layers of other sites."""
        if any(layer.sites.keys() != {ATTENTION, MLP} for layer in self.layers):
            raise UserError(
                f"a model of this kind ({self.architecture.kind}) cannot be exported: its layers are no attention and MLP"
            )
        layer = self.layers[0]
        return module_paths(self.path, layer.module, layer.attention, layer.mlp)

    @property
    def shapes(self) -> tuple[LayerShape, ...]:
        """Units of every layer."""
        return tuple(layer.shape for layer in self.layers)


def architecture_of(config: Any, guess: bool = False) -> Architecture:
    """Return what is known about the model type of a Hugging Face config.

    guess: take a type that is not in the table for one whose sites have known names. Raises UserError, with the kind of the model,
    for a type that cannot be masked, or is not in the table and not to be guessed.
    """
    row = ARCHITECTURES.get(config.model_type) or declared_architecture(config.model_type)
    if row is not None:
        if row.needs and not getattr(config, row.needs, False):
            raise UserError(
                f"model type {config.model_type!r} is an encoder, in which a token sees later ones; a decoder of this form has "
                f"{row.needs} true in its config.json"
            )
        return row
    if (kind := REFUSED.get(config.model_type)) is not None:
        raise UserError(
            f"model type {config.model_type!r} cannot be masked: it is {kind}; docs/models.md lists those that can"
        )
    if not guess:
        raise UserError(
            f"model type {config.model_type!r} is not among the {len(ARCHITECTURES)} that are known to work (docs/models.md); set "
            "model.architecture to guess to find its layers by their names, which is checked when the weights are loaded"
        )
    return Architecture(GUESSED)


def find_sites(model: Any, guess: bool = False) -> FrozenModel:
    """Locate layers and sites of a causal language model, with weights or on the meta device, with or without an adapter.

    guess: as for `architecture_of`. Raises UserError for a model without layers, or with a layer that has no site or several of
    one kind.
    """
    config = model.config.get_text_config(decoder=True)
    row = architecture_of(config, guess)
    path, modules = _layers_of(model)
    return FrozenModel(
        model=model,
        architecture=row,
        path=path,
        layers=tuple(_layer(module, f"{path}.{index}", config) for index, module in enumerate(modules)),
        head=model.get_output_embeddings(),
        device=next(model.parameters()).device,
    )


def _layers_of(model: Any) -> tuple[str, Any]:
    prefix = getattr(model, "base_model_prefix", "")
    paths = (*LAYERS, f"{prefix}.encoder.layer")
    lists = {path: module for path in paths if isinstance(module := _at(model, path), nn.ModuleList)}
    if not lists:
        raise UserError(f"{type(model).__name__} has no list of decoder layers with a known name ({', '.join(LAYERS)})")
    path, modules = min(lists.items(), key=lambda found: paths.index(found[0]))
    if len(modules) == 0:
        raise UserError("the model has no decoder layer; mend the number of layers in its config.json")
    return path, modules


def _layer(module: nn.Module, where: str, config: Any) -> Layer:
    sites: dict[str, nn.Module] = {}
    for kind, names in PROJECTIONS.items():
        for name in names:
            found = _at(module, name)
            if not isinstance(found, nn.Module) or (kind == EXPERT) == (in_features(found) > 0):
                continue
            if kind == EXPERT and not (hasattr(found, "is_concatenated") or hasattr(found, "expert_dim")):
                raise UserError(f"{where}.{name}: a mixture of experts of its own form cannot be masked")
            site = kind
            if kind == ATTENTION and any(hasattr(_parent(module, found), part) for part in RECURRENT):
                site = MIXER
            if site in sites:
                raise UserError(
                    f"{where}: a layer with two parts of a kind ({site}) cannot be masked; the second is {name}"
                )
            sites[site] = found
    if not sites:
        raise UserError(
            f"{where}: no projection of a known name writes into the residual stream of {type(module).__name__}"
        )
    return Layer(module, sites, _shape(module, sites, config))


def _shape(module: nn.Module, sites: Mapping[str, nn.Module], config: Any) -> LayerShape:
    heads = groups = dim = mixer_heads = mixer_dim = 0
    if ATTENTION in sites:
        heads, groups, dim = _attention_units(_parent(module, sites[ATTENTION]), in_features(sites[ATTENTION]), config)
    if MIXER in sites:
        mixer_heads, mixer_dim = _mixer_units(_parent(module, sites[MIXER]), in_features(sites[MIXER]))
    experts, width, output = expert_sizes(sites[EXPERT]) if EXPERT in sites else (0, 0, 0)
    return LayerShape(
        heads=heads,
        kv_heads=groups,
        head_dim=dim,
        intermediate=in_features(sites[MLP]) if MLP in sites else 0,
        hidden=out_features(sites[MLP]) if MLP in sites else 0,
        mixer_heads=mixer_heads,
        mixer_dim=mixer_dim,
        experts=experts,
        expert_width=width,
        expert_output=output,
        expert_bias=bool(experts and getattr(_unwrapped(sites[EXPERT]), "has_bias", False)),
    )


_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "num_v_heads")
_DIMS = ("v_head_dim", "head_v_dim", "head_dim", "attn_head_size", "head_size")


def _attention_units(module: nn.Module, width: int, config: Any) -> tuple[int, int, int]:
    """Read query heads, key/value heads and width of a head's values from an attention module whose output is `width` wide."""
    heads = _dividing(module, _HEADS, width)
    if not heads and (dim := _dividing(module, _DIMS, width)):
        heads = width // dim
    heads = heads or _dividing(config, _HEADS, width) or 1
    if any(hasattr(module, name) for name in LATENT):
        return heads, heads, width // heads
    per_group = getattr(module, "num_key_value_groups", None)
    groups = heads // per_group if isinstance(per_group, int) and per_group else kv_heads(config, heads)
    return heads, groups if groups and heads % groups == 0 else heads, width // heads


def _mixer_units(module: nn.Module, width: int) -> tuple[int, int]:
    """Read heads and their width from a mixer; one head where it has channels only."""
    heads = _dividing(module, ("num_v_heads", "num_heads", "num_attention_heads"), width)
    dim = _dividing(module, ("head_v_dim", "v_head_dim", "head_dim"), width)
    heads = heads or (width // dim if dim else 1)
    return heads, width // heads


def _dividing(owner: Any, names: tuple[str, ...], width: int) -> int:
    """Return the first of some attributes that is a divisor of `width`, 0 if there is none."""
    for name in names:
        value = getattr(owner, name, None)
        if isinstance(value, int) and value > 0 and width % value == 0:
            return value
    return 0


def kv_heads(config: Any, heads: int) -> int:
    """Return the number of key/value heads, which has several names in configs. heads: query heads."""
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1
    return getattr(config, "num_key_value_heads", None) or getattr(config, "num_kv_heads", None) or heads


def expert_sizes(experts: Any) -> tuple[int, int, int]:
    """Return the number of experts of a module of all experts, the neurons of one, and the width of what it writes."""
    weight = _unwrapped(experts).down_proj
    count, first, second = getattr(weight, "ds_shape", weight.shape)
    by_rows = getattr(experts, "is_transposed", not hasattr(experts, "is_concatenated"))
    return (count, first, second) if by_rows else (count, second, first)


def _unwrapped(experts: Any) -> Any:
    """Module of experts within that of an adapter, if there is one."""
    return getattr(experts, "base_layer", experts)


def _at(module: Any, path: str) -> Any:
    try:
        return attrgetter(path)(module)
    except AttributeError:
        return None


def _parent(layer: nn.Module, module: nn.Module) -> nn.Module:
    """Module of a layer that holds another one."""
    for name, found in layer.named_modules():
        if found is module:
            return layer.get_submodule(name.rpartition(".")[0])
    raise AssertionError("the module is in the layer")
