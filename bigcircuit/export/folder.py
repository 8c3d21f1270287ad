"""A cut model as a Hugging Face folder: config.json, weights tensor by tensor, tokenizer."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bigcircuit.export.cut import LayerCut
from bigcircuit.export.source import SourceWeights
from bigcircuit.export.tensors import LayerParts
from bigcircuit.export.writer import Planned, copy_beside, write_text, write_weights
from bigcircuit.model.sites import FrozenModel


class CutTensors:
    """Parameters of a cut model by their names there, made one at a time from those of the base."""

    def __init__(
        self, base: FrozenModel, written: FrozenModel, cuts: Sequence[LayerCut], source: SourceWeights
    ) -> None:
        """base, written: models on the meta device; cuts: one a written layer."""
        self._source, self._cuts, self._row = source, cuts, base.architecture
        self._model = written.model
        transposed = hasattr(base.layers[0].attention, "nx")
        self._parts = LayerParts(base.model.config.model_type, base.architecture, base.shapes[0], transposed)

    def planned(self) -> list[Planned]:
        """List the tensors in the order of the model, tied ones once. Biases with constants are float32, others as in the base."""
        return [
            Planned(name, tuple(parameter.shape), self._dtype(name), partial(self.make, name, parameter.shape))
            for name, parameter in self._model.named_parameters()
        ]

    def make(self, name: str, size: torch.Size) -> Tensor:
        """Make one parameter."""
        layer = self._layer_of(name)
        if layer is None:
            made = self._source(name)
            assert made is not None, f"{name} is not in the base"
            return made
        cut, inside = layer
        made = self._parts.written(inside, cut, self._reader(cut))
        return torch.zeros(size, dtype=self._source.dtype) if made is None else made

    def _dtype(self, name: str) -> torch.dtype:
        layer = self._layer_of(name)
        if layer is not None:
            cut, inside = layer
            biased = dict(zip((f"{self._row.attention}.bias", f"{self._row.mlp}.bias"), cut.biased, strict=True))
            return torch.float32 if biased.get(inside) else self._source.dtype
        return self._source.dtype

    def _reader(self, cut: LayerCut) -> Callable[[str], Tensor | None]:
        return lambda inside: self._source(f"{self._row.layers}.{cut.layer}.{inside}")

    def _layer_of(self, name: str) -> tuple[LayerCut, str] | None:
        """Return the cut of a parameter's layer and its name within; None outside the layers."""
        prefix = f"{self._row.layers}."
        if not name.startswith(prefix):
            return None
        number, _, inside = name.removeprefix(prefix).partition(".")
        for path in (self._row.attention, self._row.mlp):  # the bias of a closed sub-layer
            parent = path.rpartition(".")[0]
            if parent and inside == f"{parent}.bias":
                inside = f"{path}.bias"
        return self._cuts[int(number)], inside


def write_folder(
    folder: Path, tensors: CutTensors, config: dict[str, Any], beside: Path | None, advance: Callable[[int], None]
) -> None:
    """Write a model folder. config: content of config.json; beside: folder with the tokenizer; advance: as for `write_weights`."""
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_weights(folder, tensors.planned(), advance)
    copy_beside(beside, folder)


def config_json(hf_config: Any, architecture: str, dtype: torch.dtype, **more: Any) -> dict[str, Any]:
    """Make the content of config.json. architecture: name of the model class; dtype: of the weights."""
    hf_config.architectures = [architecture]
    content = json.loads(hf_config.to_json_string(use_diff=True))
    return content | {"dtype": str(dtype).removeprefix("torch."), "architectures": [architecture]} | more
