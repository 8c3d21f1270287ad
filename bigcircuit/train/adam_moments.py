"""Adam's moments of a parameter as tensors of a checkpoint."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

_MOMENTS = ("exp_avg", "exp_avg_sq")


def export_moments(optimizer: torch.optim.Adam, parameter: nn.Parameter, name: str) -> dict[str, Tensor]:
    """Collect the moments of a parameter by their names in a checkpoint; nothing before its first update."""
    moments = optimizer.state.get(parameter, {})
    return {f"{key}.{name}": moments[key] for key in _MOMENTS if moments}


def restore_moments(
    optimizer: torch.optim.Adam, parameter: nn.Parameter, name: str, tensors: Mapping[str, Tensor], updates: int
) -> None:
    """Restore the moments that `export_moments` collected after so many updates; does nothing for 0."""
    if updates:
        moments: dict[str, Any] = {key: tensors[f"{key}.{name}"].to(parameter.device, copy=True) for key in _MOMENTS}
        optimizer.state[parameter] = {"step": torch.tensor(float(updates)), **moments}
