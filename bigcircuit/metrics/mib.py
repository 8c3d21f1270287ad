"""CPR and CMD, the areas of the MIB benchmark (Mueller et al. 2025, arXiv 2504.13151), as pure functions.

A ranking of n items gives circuits of the best k of them, k = floor(p n) for ten fractions p from 0.1% to 100%. The
faithfulness of a circuit C is f = (m(C) - m(empty)) / (m(full) - m(empty)) with m the mean logit difference. CPR is the area
under f and CMD the area of |1 - f|, both by the trapezoidal rule over p itself (not its logarithm) between the first and the
last fraction: nothing is added below 0.1%, and |1 - f| is taken at the points before they are joined.

Ranking by score ("signed") or by absolute score ("absolute") changes published figures by a factor of two.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the ranked items that are kept."""
Ranking = Literal["signed", "absolute"]


class Areas(NamedTuple):
    """Areas of one curve, or arrays of the areas of many curves; 0 to 0.999 for a faithfulness between 0 and 1."""

    cpr: Any
    """Circuit performance ratio: more is better, without upper bound."""
    cmd: Any
    """Circuit-model distance: 0 is best."""


def sizes(items: int, fractions: Sequence[float] = FRACTIONS) -> list[int]:
    """Compute how many items each circuit keeps: rounded down, so that the first circuits of small models are empty."""
    return [int(fraction * items) for fraction in fractions]


def ranked(scores: Tensor, ranking: Ranking) -> Tensor:
    """Compute the values by which scores are sorted, in the same places; missing scores (NaN) come last."""
    values = scores.abs() if ranking == "absolute" else scores
    return torch.where(values.isnan(), -torch.inf, values)


def faithfulness(circuit: ArrayLike, empty: ArrayLike, full: ArrayLike) -> np.ndarray:
    """Compute (m(C) - m(empty)) / (m(full) - m(empty)), of any shape; NaN where full and empty model are the same."""
    gain = np.subtract(full, empty)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gain == 0, np.nan, np.subtract(circuit, empty) / gain)


def areas(faithfulnesses: ArrayLike, fractions: Sequence[float] = FRACTIONS) -> Areas:
    """Compute CPR and CMD from the faithfulness at each fraction, [..., number of fractions]."""
    f, p = np.asarray(faithfulnesses, dtype=float), np.asarray(fractions, dtype=float)
    return Areas(np.trapezoid(f, p), np.trapezoid(np.abs(1 - f), p))
