"""Gaussian noise that is a function of what it is for: (seed, layer, site, example, position, neuron).

The bits come from a counter-based hash in place of a generator, so a token gets the same noise in every batch, under any padding
and on every rank, a layer can be recomputed, and the meta device, on which memory is predicted, can run it too.
"""

import torch
from torch import Tensor

_FIRST, _SECOND, _STEP = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15, -0x61C8864680B583EB
"""The constants of splitmix64 (Steele et al. 2014) as signed 64-bit integers, the type that torch has."""


def standard_normal(seed: int, examples: Tensor, positions: Tensor, width: int) -> Tensor:
    """Independent standard normal numbers, float32 [R, T, width].

    seed: a 64-bit integer, see `seeding.mix`. examples: ids of the examples of the rows, int64 [R]. positions: int64 [R or 1, T].
    """
    rows = _mix(examples + _signed(seed)).view(-1, 1, 1)
    tokens = _mix(rows + positions.unsqueeze(-1))
    bits = _mix(tokens + torch.arange(width, device=positions.device))
    uniform = (_shifted(bits, 11).double() + 0.5) * 2.0**-53
    # float64, so that no bit of the rounded result depends on where in a tensor a number stands.
    return (torch.special.ndtri(uniform)).float()


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Logical shift to the right of signed 64-bit integers."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _mix(state: Tensor) -> Tensor:
    """One step of splitmix64, element by element; products wrap around as they do in unsigned arithmetic."""
    state = state + _STEP
    state = (state ^ _shifted(state, 30)) * _FIRST
    state = (state ^ _shifted(state, 27)) * _SECOND
    return state ^ _shifted(state, 31)
