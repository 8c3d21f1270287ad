"""CPR and CMD, the areas of the MIB benchmark (Mueller et al. 2025, arXiv 2504.13151), as pure functions.

A ranking of n items gives circuits of the best k of them, k = floor(p n) for ten fractions p from 0.1% to 100%. The
faithfulness of a circuit C is f = (m(C) - m(empty)) / (m(full) - m(empty)) with m the mean logit difference. CPR is the area
under f and CMD the area of |1 - f|, both by the trapezoidal rule over p itself (not its logarithm) between the first and the
last fraction: nothing is added below 0.1%, and |1 - f| is taken at the points before they are joined.

Ranking by score ("signed") or by absolute score ("absolute") changes published figures by a factor of two.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Shares of the ranked items."""
Ranking = Literal["signed", "absolute"]


class Areas(NamedTuple):
    """Both between 0 and 0.999 for a faithfulness between 0 and 1."""

    cpr: float
    """Circuit performance ratio: more is better, and it has no upper bound."""
    cmd: float
    """Circuit-model distance: 0 is best."""


def sizes(items: int, fractions: Sequence[float] = FRACTIONS) -> list[int]:
    """How many items each circuit keeps: rounded down, so that small models have empty circuits at first."""
    return [int(fraction * items) for fraction in fractions]


def ranked(scores: Tensor, ranking: Ranking) -> Tensor:
    """Scores to be sorted by, in the same places; missing ones (NaN) come last."""
    values = scores.abs() if ranking == "absolute" else scores
    return torch.where(values.isnan(), -torch.inf, values)


def faithfulness(circuit: float, empty: float, full: float) -> float:
    """(m(C) - m(empty)) / (m(full) - m(empty)); NaN where full and empty model are the same."""
    return (circuit - empty) / (full - empty) if full != empty else float("nan")


def areas(faithfulnesses: Sequence[float], fractions: Sequence[float] = FRACTIONS) -> Areas:
    """CPR and CMD of the faithfulness at each fraction."""
    f, p = np.asarray(faithfulnesses, dtype=float), np.asarray(fractions, dtype=float)
    return Areas(float(np.trapezoid(f, p)), float(np.trapezoid(np.abs(1 - f), p)))
