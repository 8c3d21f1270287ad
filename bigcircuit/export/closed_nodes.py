"""Close nodes inside the weights of a model, whatever its layers are made of: columns become zero, constants go into biases.

Shapes: n neurons of a site, D hidden size, E experts, F neurons of an expert.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.errors import UserError
from bigcircuit.model.granularity import EXPERT, EXPERT_NEURON, LEAVES, MLP, MLP_OUTPUT, SITE_WIDTH
from bigcircuit.model.sites import FrozenModel, Layer

Read = Callable[[str], Tensor | None]
"""Name of a parameter -> its value in the base model; None if it has none of this name."""
Edit = Callable[[Read], Tensor]
"""Makes a parameter of the written model."""


@dataclass(frozen=True)
class ClosedInputs:
    """What is closed at one projection."""

    opened: Tensor
    """Which inputs are kept, bool [n]."""
    outputs: Tensor | None
    """Which outputs are kept, bool [D]; None for all."""
    constant: Tensor | None
    """What closed inputs are instead, float32 [n]; None for zero."""
    output_constant: Tensor | None
    """What closed outputs are instead, float32 [D]."""
    transposed: bool
    """Whether the weight is [in, out], as in GPT-2's Conv1D."""

    @property
    def needs_bias(self) -> bool:
        """Whether closed nodes add something other than zero."""
        inside = self.constant is not None and bool((self.constant * ~self.opened).any())
        outside = self.outputs is not None and self.output_constant is not None
        return inside or (outside and bool((self.output_constant * ~self.outputs).any()))  # type: ignore[operator]

    def weight(self, base: Tensor) -> Tensor:
        """The weight with columns of closed inputs and rows of closed outputs zero."""
        closed = ~self.opened.unsqueeze(1 if self.transposed else 0)
        if self.outputs is not None:
            closed = closed | ~self.outputs.unsqueeze(0 if self.transposed else 1)
        return base.masked_fill(closed, 0)

    def bias(self, base: Tensor | None, weight: Tensor) -> Tensor:
        """The bias with what closed nodes add, float32 where they add something. weight: of the base."""
        hidden = weight.shape[1 if self.transposed else 0]
        if not self.needs_bias:
            made = torch.zeros(hidden, dtype=weight.dtype) if base is None else base
            return made if self.outputs is None else made * self.outputs
        total = torch.zeros(hidden) if base is None else base.float()
        if self.constant is not None:
            closed = _closed(self.opened)
            columns = weight.index_select(0 if self.transposed else 1, closed).double()
            added = (columns.T if self.transposed else columns) @ self.constant[closed].double()
            total = (total.double() + added).float()
        if self.outputs is not None:
            constant = torch.zeros(hidden) if self.output_constant is None else self.output_constant
            total = torch.where(self.outputs, total, constant)
        return total


def _closed(opened: Tensor) -> Tensor:
    return (~opened).nonzero().flatten()


class ClosedNodes:
    """The parameters of a model that a circuit changes, and how."""

    def __init__(self, frozen: FrozenModel, masks: Mapping[str, Tensor], ablation: Ablation, subject: str) -> None:
        """frozen: on the meta device; masks: bool [L, n] by granularity; subject: names the model in messages.

        Raises UserError for layers that share weights and are closed differently, and for experts whose down projection is hidden.
        """
        self._names = {id(parameter): name for name, parameter in frozen.model.named_parameters()}
        self._paths = {id(module): path for path, module in frozen.model.named_modules()}
        self._subject = subject
        self.edits: dict[str, Edit] = {}
        """Name of a parameter -> how it is made."""
        self.new_biases: dict[str, str] = {}
        """Name of a bias that the base has not -> site whose constants it holds."""
        self._with_constants: set[str] = set()
        self._seen: dict[str, list[Tensor | None]] = {}
        for index, layer in enumerate(frozen.layers):
            self._add_layer(layer, index, masks, ablation)

    def close_places(self, parameter: Tensor, axis: int, closed: Tensor) -> None:
        """Make rows or columns of a parameter zero as well. closed: bool, along the axis."""
        name, places = self._names[id(parameter)], closed.nonzero().flatten()
        if len(places):
            self.edits[name] = lambda read: _read(read, name).index_fill(axis, places, 0)

    def dtype(self, name: str, of_base: torch.dtype) -> torch.dtype:
        """The dtype in which a parameter is written: that of the base, of biases that hold constants float32."""
        return torch.float32 if name in self._with_constants else of_base

    def _add_layer(self, layer: Layer, index: int, masks: Mapping[str, Tensor], ablation: Ablation) -> None:
        opened = {
            site: masks[name][index, : SITE_WIDTH[site](layer.shape)] for site, name in LEAVES.items() if name in masks
        }
        constants = {
            site: values[0, index, 0, : SITE_WIDTH[site](layer.shape)]
            for site, values in (ablation.constants or {}).items()
        }
        for site, module in layer.sites.items():
            if site == EXPERT:
                self._add_experts(module, opened[EXPERT], opened.get(EXPERT_NEURON))
                continue
            outputs = opened.get(MLP_OUTPUT) if site == MLP else None
            closed = ClosedInputs(
                opened=opened[site],
                outputs=outputs,
                constant=constants.get(site),
                output_constant=constants.get(MLP_OUTPUT) if outputs is not None else None,
                transposed=hasattr(module, "nx"),
            )
            self._add_projection(site, module, closed)

    def _add_projection(self, site: str, module: Any, closed: ClosedInputs) -> None:
        weight = self._names[id(module.weight)]
        if self._is_shared(weight, [closed.opened, closed.outputs, closed.constant, closed.output_constant]):
            return
        self.edits[weight] = lambda read: closed.weight(_read(read, weight))
        if module.bias is not None:
            bias = self._names[id(module.bias)]
        elif closed.needs_bias:
            bias = f"{self._paths[id(module)]}.bias"
            self.new_biases[bias] = site
        else:
            return
        if closed.needs_bias:
            self._with_constants.add(bias)
        if closed.needs_bias or closed.outputs is not None:
            self.edits[bias] = lambda read: closed.bias(read(bias), _read(read, weight))

    def _add_experts(self, module: Any, experts: Tensor, neurons: Tensor | None) -> None:
        name = self._names[id(module.down_proj)]
        if self._is_shared(name, [experts, neurons]):
            return
        by_rows = getattr(module, "is_transposed", not hasattr(module, "is_concatenated"))  # [E, F, D], else [E, D, F]

        def down(read: Read) -> Tensor:
            weight = _read(read, name)
            if neurons is None:
                return weight.masked_fill(~experts.view(-1, 1, 1), 0)
            return weight.masked_fill(~neurons.view(len(weight), -1).unsqueeze(2 if by_rows else 1), 0)

        self.edits[name] = down
        if getattr(module, "has_bias", False):
            bias = self._names[id(module.down_proj_bias)]
            self.edits[bias] = lambda read: _read(read, bias).masked_fill(~experts.unsqueeze(1), 0)

    def _is_shared(self, name: str, closed: list[Tensor | None]) -> bool:
        """Whether a parameter of an earlier layer is met again. Raises UserError if other nodes are closed there."""
        before = self._seen.setdefault(name, closed)
        if before is closed:
            return False
        for one, other in zip(before, closed, strict=True):
            if (one is None) != (other is None) or (one is not None and other is not None and not one.equal(other)):
                raise UserError(
                    f"{self._subject}: two layers share {name}, and the circuit closes other nodes of it in each, which weights "
                    "cannot hold; evaluate the circuit in place"
                )
        return True


def _read(read: Read, name: str) -> Tensor:
    value = read(name)
    assert value is not None, f"{name} is not in the base"
    return value
