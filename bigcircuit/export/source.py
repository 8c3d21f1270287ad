"""Weights of the base model as an export reads them: one parameter at a time, by the names in the model or in the files."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from bigcircuit.config.schema import ModelConfig
from bigcircuit.errors import UserError
from bigcircuit.export.stored_layout import StoredLayout
from bigcircuit.export.writer import FilePiece, file_pieces
from bigcircuit.model.adapter import merged
from bigcircuit.model.load import DTYPES, load_frozen
from bigcircuit.model.weight_files import NOT_FLOATING, stored_tensors, weight_files


class SourceWeights:
    """Reads the base model's parameters. A context manager, to be entered before the first is read.

    A file is opened for each tensor and stays mapped no longer than the tensor lives: the pages of a mapped file count as resident
    memory of the process, which a limit on memory may include.
    """

    def __init__(self, config: ModelConfig, skeleton: Any) -> None:
        """skeleton: the Hugging Face model on the meta device, for the names of its parameters.

        Raises UserError if the weights are not on this machine, are quantised, or have other names than the model's parameters.
        """
        self._config = config
        self._state: dict[str, Tensor] = {}
        self._pieces: dict[str, FilePiece] = {}
        self._files: dict[str, Path] = {}
        self._shapes = {name: one.shape for name, one in skeleton.named_parameters(remove_duplicate=False)}
        self.stored = _stored(config)
        """Tensors of the files on the meta device."""
        self.layout = StoredLayout(skeleton, self.stored, f"model.path {config.path}")
        counted = [tensor.dtype for tensor in self.stored.values()]
        self.dtype = max(set(counted), key=counted.count)
        """The dtype of most weights of the base, which the exported model has."""

    def __enter__(self) -> "SourceWeights":
        if self._config.adapter:
            self._state = self._merged().state_dict()
            return self
        for path in weight_files(self._config):
            self._pieces |= (pieces := file_pieces(path))
            self._files |= dict.fromkeys(pieces, path)
        return self

    def __exit__(self, *_: object) -> None:
        self._state, self._pieces, self._files = {}, {}, {}

    @property
    def has_files(self) -> bool:
        """Whether the weights are those of the files: no adapter was merged into them."""
        return not self._config.adapter

    def __call__(self, name: str) -> Tensor | None:
        """Read a parameter; None if the base model has none of this name."""
        if not self.has_files:
            return self._state.get(name)
        return self.layout.in_memory(name, self.read_stored) if name in self.layout else None

    def whole(self, name: str) -> Tensor:
        """Read a parameter that the base has."""
        value = self(name)
        assert value is not None, f"{name} is not in the base"
        return value

    def stored_dtype(self, name: str) -> torch.dtype:
        """The dtype that the files hold a parameter in; that of most where it is in none."""
        if not self.has_files or name not in self.layout:
            return self.dtype
        return self.stored[self.layout.members(name)[0]].dtype

    def holds(self, name: str) -> bool:
        """Whether the base has a parameter or buffer of this name."""
        return name in self.layout

    def read_stored(self, stored: str) -> Tensor:
        """Read a tensor by its name in the files."""
        with safe_open(self._files[stored], framework="pt") as file:
            return file.get_tensor(stored)

    def piece(self, stored: str) -> FilePiece:
        """Return where a tensor is in the files, to be copied as it is."""
        return self._pieces[stored]

    def shape(self, name: str) -> torch.Size | None:
        """Shape of a parameter of the base; None if it has none of this name."""
        return self._shapes.get(name)

    def whole_piece(self, name: str, dtype: torch.dtype) -> FilePiece | None:
        """Return where a parameter is in the files, if one tensor of this dtype holds it as it is there."""
        stored = self.layout.plain_name(name) if self.has_files else None
        return None if stored is None or self.stored[stored].dtype != dtype else self.piece(stored)

    def _merged(self) -> Any:
        """Load the base model and add its adapter to the weights; all of the model is then in memory."""
        adapter, name = self._config.adapter, next(name for name, dtype in DTYPES.items() if dtype == self.dtype)
        assert adapter is not None
        plain = self._config.model_copy(update={"adapter": None, "dtype": name, "weights": "resident"})
        model = merged(load_frozen(plain).model, adapter)
        if model.config.tie_word_embeddings and not _is_tied(model):
            raise UserError(
                f"model.adapter {adapter}: changes one of the tied embeddings and not the other; merge it with peft, and export a "
                "circuit of the merged model"
            )
        return model


def _is_tied(model: Any) -> bool:
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    return head.weight.data_ptr() == embeddings.weight.data_ptr()


def _stored(config: ModelConfig) -> dict[str, Tensor]:
    found = stored_tensors(config)
    subject = f"model.path {config.path}"
    if not found:
        raise UserError(f"{subject}: the weights are not on this machine; download the model, and give its folder")
    for name, tensor in found.items():
        if tensor.dtype == NOT_FLOATING:
            raise UserError(
                f"{subject}: {name} is quantised or of integers, and rows of such weights cannot be cut; give the model in "
                "float32, bfloat16 or float16"
            )
    return found
