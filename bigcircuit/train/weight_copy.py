"""A copy of the layers' weights that learns along with the gates and is given up at the end: `train.weight_lr`.

Gates beside frozen weights keep what the model as it is needs. Weights that are trained afterwards make up for some closed
nodes and not for others, and gates beside weights that learn find out which. The frozen model itself never changes.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bigcircuit.config.schema import TrainConfig
from bigcircuit.gates.schedules import learning_rate
from bigcircuit.model.sites import FrozenModel
from bigcircuit.train.adam_moments import export_moments, restore_moments


@dataclass
class WeightCopy:
    """The layers' parameters, their values in the copy, and Adam (Kingma and Ba 2015) for them."""

    names: list[str]
    parameters: list[nn.Parameter]
    """Of the frozen model, which outside `in_model` have its own values and no gradient."""
    values: list[Tensor]
    """Of the copy, in the order of `parameters`."""
    optimizer: torch.optim.Adam

    @classmethod
    def asked_for(cls, train: TrainConfig, frozen: FrozenModel) -> "WeightCopy | None":
        """Copy the weights of a model's decoder layers; None without `train.weight_lr`."""
        if not train.weight_lr:
            return None
        found: dict[nn.Parameter, str] = {}
        for index, layer in enumerate(frozen.layers):
            for name, parameter in layer.module.named_parameters():
                found.setdefault(parameter, f"{index}.{name}")  # layers may share weights
        values = [parameter.detach().clone() for parameter in found]
        return cls(list(found.values()), list(found), values, torch.optim.Adam(found, lr=0.0))

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Put the copy into the model, to be trained; the frozen weights are back afterwards."""
        frozen = [parameter.data for parameter in self.parameters]
        for parameter, value in zip(self.parameters, self.values, strict=True):
            parameter.data = value
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter, value in zip(self.parameters, frozen, strict=True):
                parameter.data = value
                parameter.requires_grad_(False)

    def prepare(self, train: TrainConfig, done: float) -> Tensor:
        """Clip the gradient to `train.clip` and set the learning rate. Returns the gradient's norm before."""
        self.optimizer.param_groups[0]["lr"] = learning_rate(train, done) / train.lr * train.weight_lr
        return torch.nn.utils.clip_grad_norm_(self.parameters, train.clip)

    def step(self) -> None:
        """Update the copy. Within `in_model`."""
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def export(self) -> dict[str, Tensor]:
        """Collect the tensors that `restore` needs, by name."""
        tensors = dict(zip(self.names, self.values, strict=True))
        for name, parameter in zip(self.names, self.parameters, strict=True):
            tensors |= export_moments(self.optimizer, parameter, name)
        return tensors

    def restore(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Restore the tensors that `export` collected after so many updates."""
        for name, parameter, value in zip(self.names, self.parameters, self.values, strict=True):
            value.copy_(tensors[name])
            restore_moments(self.optimizer, parameter, name, tensors, updates)
