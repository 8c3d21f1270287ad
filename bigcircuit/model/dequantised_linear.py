"""Projections with quantised weights: each is dequantised whenever it is used, forward and backward, by the library that made it.

A pass then computes what it would with plain weights, and its gradients are theirs. The kernels of the libraries quantise
activations, round otherwise for inference, or leave gradients out.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def read_torchao(module: Any) -> Tensor:
    """Dequantise a weight of torchao, [out, in]."""
    return module.weight.dequantize()


def read_four_bits(module: Any) -> Tensor:
    """Dequantise a weight of 4 bits of bitsandbytes, [out, in]."""
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(module.weight.data, module.weight.quant_state)


def read_int8(module: Any) -> Tensor:
    """Dequantise a weight of 8 bits of bitsandbytes, [out, in]; the largest number of a row is in `SCB`."""
    weight = module.weight
    return weight.data.float() * (weight.SCB.float().unsqueeze(1) / 127)


class _DequantisedLinear(torch.autograd.Function):
    """Linear map whose weight is dequantised forward and once more backward, so that a graph keeps the quantised one alone."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, module: Any, read: Callable[[Any], Tensor]) -> Tensor:
        ctx.module, ctx.read = module, read
        return nn.functional.linear(value, read(module).to(value.dtype), module.bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient.matmul(ctx.read(ctx.module).to(gradient.dtype)), None, None


def use_dequantised(module: Any, read: Callable[[Any], Tensor]) -> None:
    """Have a quantised projection compute with its dequantised weight. read: dequantises the weight of the module."""
    module.forward = partial(_dequantised_linear, module, read)


def _dequantised_linear(module: Any, read: Callable[[Any], Tensor], value: Tensor) -> Tensor:
    return _DequantisedLinear.apply(value, module, read)


def plain_linear(module: Any, read: Callable[[Any], Tensor], dtype: torch.dtype) -> nn.Linear:
    """Make a plain projection, without a gradient, of a quantised one."""
    weight = read(module).to(dtype).contiguous()
    plain = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    plain.weight = nn.Parameter(weight, requires_grad=False)
    if module.bias is not None:
        plain.bias = nn.Parameter(module.bias.detach().to(dtype), requires_grad=False)
    return plain


def is_quantised(module: nn.Module) -> bool:
    """Whether a module is a Linear whose weight is not a plain floating-point parameter."""
    weight = getattr(module, "weight", None)
    return isinstance(module, nn.Linear) and (type(weight) is not nn.Parameter or not weight.is_floating_point())


def logical_numel(parameter: Tensor) -> int:
    """Count the weights that a parameter stands for: of bitsandbytes' 4 bits, two are in a byte."""
    state = getattr(parameter, "quant_state", None)
    return int(torch.Size(state.shape).numel()) if state is not None else parameter.numel()
