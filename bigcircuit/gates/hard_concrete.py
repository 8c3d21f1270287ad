"""The hard-concrete distribution (Louizos, Welling, Kingma 2018, arXiv 1712.01312, eq. 10-12).

A gate is one real number `log_alpha`. Every function is element-wise and keeps the shape and type of its argument.

Exponentials are taken in float64: in float32 their last bit depends on where in a tensor a number stands, and so on how many
members share a pass.
"""

import math

import torch
from torch import Tensor

BETA = 2 / 3
"""Temperature of the concrete distribution."""
GAMMA, ZETA = -0.1, 1.1
"""The interval that the concrete variable is stretched to before it is clamped to [0, 1]."""
_SHIFT = BETA * math.log(-GAMMA / ZETA)
_EPSILON = 1e-6


def sample(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """Turn uniform noise on [0, 1) into gate values in [0, 1]; differentiable in `log_alpha`; shapes broadcast."""
    noise = torch.logit(uniform.double().clamp(_EPSILON, 1 - _EPSILON))
    concrete = torch.sigmoid((noise + log_alpha) / BETA).to(log_alpha.dtype)
    return (concrete * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def binary_sample(log_alpha: Tensor, uniform: Tensor) -> Tensor:
    """`sample`, rounded to 0 or 1 in the forward pass, with the gradient of the soft value (straight-through)."""
    soft = sample(log_alpha, uniform)
    return soft + ((soft > 0.5).to(soft.dtype) - soft).detach()


def probability_open(log_alpha: Tensor) -> Tensor:
    """P(z > 0) = sigmoid(log_alpha - beta log(-gamma / zeta))."""
    return torch.sigmoid(log_alpha.double() - _SHIFT).to(log_alpha.dtype)
