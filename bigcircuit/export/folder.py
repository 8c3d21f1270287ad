"""A cut model as a Hugging Face folder: config.json, weights tensor by tensor, tokenizer."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bigcircuit.export.cut import LayerCut
from bigcircuit.export.source import SourceWeights
from bigcircuit.export.tensors import LayerParts
from bigcircuit.export.writer import FilePiece, Planned, copy_beside, write_text, write_weights
from bigcircuit.model.sites import FrozenModel


class CutTensors:
    """Parameters of a cut model by their names there, made one at a time from those of the base."""

    def __init__(
        self, base: FrozenModel, written: FrozenModel, cuts: Sequence[LayerCut], source: SourceWeights
    ) -> None:
        """base, written: models on the meta device; cuts: one a written layer."""
        self._source, self._cuts, self._base, self._row = source, cuts, base, base.paths
        self._model = written.model
        transposed = hasattr(base.layers[0].attention, "nx")
        self._parts = LayerParts(base.model.config.model_type, base.paths, base.shapes[0], transposed)

    def planned(self) -> list[Planned]:
        """List the tensors in the order of the model, tied ones once. Biases with constants are float32, others as in the base."""
        return [
            Planned(
                name,
                tuple(parameter.shape),
                self._dtype(name),
                partial(self.make, name, parameter.shape),
                self._piece(name),
            )
            for name, parameter in self._own()
        ]

    def _own(self) -> Iterator[tuple[str, Tensor]]:
        """Yield parameters by name, tied ones once, and buffers that the base holds in its files."""
        yield from self._model.named_parameters()
        for name, value in self._model.state_dict(keep_vars=True).items():
            if not isinstance(value, nn.Parameter):
                layer = self._layer_of(name)
                if self._source.holds(name if layer is None else self._base_name(*layer)):
                    yield name, value

    def unlike(self) -> str | None:
        """Name a parameter whose shape is not the one that this cut gives it: how to cut it is not known; None for none."""
        base = {name: parameter.shape for name, parameter in self._base.model.named_parameters(remove_duplicate=False)}
        for name, parameter in self._model.named_parameters():
            layer = self._layer_of(name)
            if layer is None:
                continue
            cut, inside = layer
            of_base = base.get(self._base_name(cut, self._parts.base_name(inside, cut)))
            if of_base is not None and self._parts.size(inside, cut, of_base) != parameter.shape:
                return name
        return None

    def _piece(self, name: str) -> FilePiece | None:
        """Where a parameter is in the files of the base, if it is written as it is there."""
        layer = self._layer_of(name)
        if layer is None:
            return self._source.whole_piece(name, self._dtype(name))
        cut, inside = layer
        base = self._base_name(cut, self._parts.base_name(inside, cut))
        shape = self._source.shape(base)
        is_whole = shape is not None and self._parts.is_whole(inside, shape)
        return self._source.whole_piece(base, self._dtype(name)) if is_whole else None

    def _base_name(self, cut: LayerCut, inside: str) -> str:
        return f"{self._row.layers}.{cut.layer}.{inside}"

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
        return lambda inside: self._source(self._base_name(cut, inside))

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
    folder: Path,
    tensors: Sequence[Planned],
    config: dict[str, Any],
    beside: Path | None,
    advance: Callable[[int], None],
) -> None:
    """Write a model folder. config: content of config.json; beside: folder with the tokenizer; advance: as for `write_weights`."""
    write_text(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    write_weights(folder, tensors, advance)
    copy_beside(beside, folder)


def config_json(hf_config: Any, architecture: str, dtype: torch.dtype, **more: Any) -> dict[str, Any]:
    """Make the content of config.json. architecture: name of the model class; dtype: of the weights."""
    hf_config.architectures = [architecture]
    content = json.loads(hf_config.to_json_string(use_diff=True))
    return content | {"dtype": str(dtype).removeprefix("torch."), "architectures": [architecture]} | more
