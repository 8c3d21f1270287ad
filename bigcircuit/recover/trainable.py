"""What of an exported model is trained: the entries of its layers that are open, by themselves or through LoRA.

A row or a column of zeros of a weight is closed: there the export computes nothing, and there it stays zero.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bigcircuit.errors import UserError
from bigcircuit.export.compact_model import ConstantSublayer
from bigcircuit.recover.config import RecoverSettings
from bigcircuit.seeding import mix

_KEY = 0x10A
"""Keeps the first matrices of LoRA apart from other uses of a seed."""


class OpenEntries(NamedTuple):
    """Which entries of a matrix, or of several stacked ones, are not closed; a vector has rows alone."""

    rows: Tensor | None
    """bool [..., rows]; None for all."""
    columns: Tensor | None
    """bool [..., columns]; None for all."""

    def keep_(self, values: Tensor) -> None:
        """Set the closed entries of a tensor to zero, in place."""
        if self.rows is not None:
            values.mul_((self.rows.unsqueeze(-1) if self.columns is not None else self.rows).to(values.dtype))
        if self.columns is not None:
            values.mul_(self.columns.unsqueeze(-2).to(values.dtype))


class Trained(NamedTuple):
    """A parameter that is trained."""

    name: str
    parameter: nn.Parameter
    opened: OpenEntries


class TrainedModel(NamedTuple):
    """An exported model and what of it is trained."""

    model: Any
    """The Hugging Face model, which LoRA's modules are part of."""
    trained: list[Trained]
    lora: Any = None
    """peft's wrapper of the model; None without LoRA."""

    def merged(self) -> Any:
        """Return the plain model with what was trained in its weights."""
        return self.model if self.lora is None else self.lora.merge_and_unload(safe_merge=True)


def make_trainable(model: Any, layers: str, settings: RecoverSettings) -> TrainedModel:
    """Choose what is trained and freeze the rest. layers: path of the list of decoder layers.

    Raises UserError for a model with nothing to train.
    """
    model.requires_grad_(False)
    inside = {f"{layers}.{name}".rstrip("."): module for name, module in model.get_submodule(layers).named_modules()}
    found = _with_lora(model, inside, settings) if settings.train == "lora" else _own_rows(model, inside)
    if not found.trained:
        raise UserError(
            f"recover.train {settings.train}: no layer of the export has weights to train; export more nodes"
        )
    for one in found.trained:
        one.parameter.requires_grad_(True)
    return found


def open_entries(module: nn.Module, name: str, parameter: Tensor) -> OpenEntries | None:
    """Find the open entries of a module's own parameter; None where none is open: constants of closed sub-layers."""
    if isinstance(module, ConstantSublayer):
        return None
    if parameter.ndim >= 2:
        held = parameter.detach() != 0
        rows, columns = held.any(-1), held.any(-2)
        return OpenEntries(rows, columns) if bool(rows.any()) else None
    weight = getattr(module, "weight", None)
    if name == "bias" and isinstance(weight, Tensor) and weight.ndim == 2:
        rows = (weight.detach() != 0).any(0 if hasattr(module, "nx") else 1)
        return OpenEntries(rows, None) if bool(rows.any()) else None
    return OpenEntries(None, None)


def _own_rows(model: Any, inside: dict[str, nn.Module]) -> TrainedModel:
    return TrainedModel(model, list(_rows(inside)))


def _rows(inside: dict[str, nn.Module]) -> Iterator[Trained]:
    for path, module in inside.items():
        for name, parameter in module.named_parameters(recurse=False):
            if (opened := open_entries(module, name, parameter)) is not None:
                yield Trained(f"{path}.{name}", parameter, opened)


def _with_lora(model: Any, inside: dict[str, nn.Module], settings: RecoverSettings) -> TrainedModel:
    """Put LoRA (Hu et al. 2021, arXiv 2106.09685) beside every projection of the layers that is not closed."""
    from peft import LoraConfig, get_peft_model

    opened = {
        path: found
        for path, module in inside.items()
        if (isinstance(module, nn.Linear) or hasattr(module, "nx"))
        and (found := open_entries(module, "weight", module.weight)) is not None  # type: ignore[arg-type]
    }
    if not opened:
        return TrainedModel(model, [])
    transposed = hasattr(inside[next(iter(opened))], "nx")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        target_modules=list(opened),
        fan_in_fan_out=transposed,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mix(settings.seed, _KEY))
        wrapped = get_peft_model(model, config)
    base, trained = wrapped.get_base_model(), []
    for path, found in opened.items():
        module: Any = base.get_submodule(path)
        outputs, inputs = (found.columns, found.rows) if transposed else (found.rows, found.columns)
        first, second = module.lora_A["default"].weight, module.lora_B["default"].weight  # [r, inputs], [outputs, r]
        every = torch.ones(settings.rank, dtype=torch.bool, device=first.device)
        for name, parameter, own in (
            (f"{path}.lora_A", first, OpenEntries(every, inputs)),
            (f"{path}.lora_B", second, OpenEntries(outputs, every)),
        ):
            with torch.no_grad():
                own.keep_(parameter)
            trained.append(Trained(name, parameter, own))
    return TrainedModel(base, trained, wrapped)
