"""Uniform noise of gates, a function of member, step, layer and example.

A value is fixed by (the member's seed, the member's step, the layer, the example), never by the slot of the member, the
order of the batch, the rank, or the global random state. So a member draws the same noise alone or in company.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bigcircuit.seeding import mix


class Noise:
    """Generator of the project's own that is reseeded for every (member, layer, example)."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        # On the meta device nothing is drawn: memory is predicted there.
        self._generator = None if self._device.type == "meta" else torch.Generator(device=device)

    def uniform(
        self, seeds: Sequence[int], steps: Sequence[int], layer: int, examples: Sequence[int], width: int
    ) -> Tensor:
        """Draw uniform values on [0, 1), float32 [P, B, width]; seeds and steps have one entry a member (P)."""
        drawn = torch.empty(len(seeds), len(examples), width, device=self._device)
        if self._generator is None:
            return drawn
        for member, (seed, step) in enumerate(zip(seeds, steps, strict=True)):
            for row, example in enumerate(examples):
                self._generator.manual_seed(mix(seed, step, layer, example))
                torch.rand(width, generator=self._generator, out=drawn[member, row])
        return drawn
