"""A model object under a circuit, with a key/value cache and for text generation: for ablations without a corrupted stream."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from bigcircuit.export.cut import LayerCut
from bigcircuit.model.granularity import ATTENTION, MLP, MLP_OUTPUT
from bigcircuit.model.sites import FrozenModel


@contextmanager
def masked(frozen: FrozenModel, cuts: Sequence[LayerCut]) -> Iterator[Any]:
    """Close the nodes of a model inside the context. cuts: one a layer of the model. Yields the Hugging Face model."""
    with ExitStack() as hooks:
        for layer, cut in zip(frozen.layers, cuts, strict=True):
            for module, site in ((layer.attention, ATTENTION), (layer.mlp, MLP)):
                hook = module.register_forward_pre_hook(partial(_at_input, *_values(cut, site, frozen)))
                hooks.callback(hook.remove)
            if MLP_OUTPUT in cut.opened:
                hook = layer.mlp.register_forward_hook(partial(_at_output, *_values(cut, MLP_OUTPUT, frozen)))
                hooks.callback(hook.remove)
        yield frozen.model


def _values(cut: LayerCut, site: str, frozen: FrozenModel) -> tuple[Tensor, Tensor]:
    """Mask of a site, and what its closed neurons output, float32 [site width]."""
    mask = cut.opened[site].float()
    constant = cut.constants.get(site, mask.new_zeros(len(mask)))
    return mask.to(frozen.device), ((1 - mask) * constant).to(frozen.device)


def _at_input(mask: Tensor, constant: Tensor, _module: nn.Module, args: tuple) -> tuple:
    return (_interpolated(mask, constant, args[0]), *args[1:])


def _at_output(mask: Tensor, constant: Tensor, _module: nn.Module, _args: tuple, output: Tensor) -> Tensor:
    return _interpolated(mask, constant, output)


def _interpolated(mask: Tensor, constant: Tensor, value: Tensor) -> Tensor:
    return value * mask.to(value.dtype) + constant.to(value.dtype)
