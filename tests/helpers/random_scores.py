"""Random node scores of a small model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bigcircuit.model.granularity import GRANULARITIES, LayerShape

SHAPES = (LayerShape(4, 2, 2, 6, 5), LayerShape(4, 2, 2, 3, 5))
"""Two layers of different MLP widths."""


def random_scores(seed: int = 0, shapes: Sequence[LayerShape] = SHAPES) -> dict[str, Tensor]:
    """Draw scores around 0, so that many of the best are negative: granularity -> float32 [L, n]."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(len(shapes), max(g.width(s) for s in shapes), generator=generator)
        for name, g in GRANULARITIES.items()
    }
