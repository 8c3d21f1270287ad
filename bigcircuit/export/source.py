"""Weights of the base model as an export reads them: one tensor at a time, by the names of the model's parameters."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from bigcircuit.config.schema import ModelConfig
from bigcircuit.errors import UserError
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
        self._read: Callable[[str], Tensor]
        self._stored = _stored_names(config, skeleton)
        counted = [tensor.dtype for tensor in _shapes(config).values()]
        self.dtype = max(set(counted), key=counted.count)
        """The dtype of most weights of the base, which the exported model has."""

    def __enter__(self) -> "SourceWeights":
        if self._config.adapter:
            state = self._merged().state_dict()
            self._read, self._stored = state.__getitem__, {name: name for name in state}
        else:
            files: dict[str, Path] = {}
            for path in weight_files(self._config):
                with safe_open(path, framework="pt") as file:
                    files |= dict.fromkeys(file.keys(), path)
            self._read = lambda stored: _read_tensor(files[stored], stored)
        return self

    def __exit__(self, *_: object) -> None:
        del self._read

    def __call__(self, name: str) -> Tensor | None:
        """Read a parameter; None if the base model has none of this name."""
        stored = self._stored.get(name)
        return None if stored is None else self._read(stored)

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


def _read_tensor(path: Path, name: str) -> Tensor:
    with safe_open(path, framework="pt") as file:
        return file.get_tensor(name)


def _is_tied(model: Any) -> bool:
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    return head.weight.data_ptr() == embeddings.weight.data_ptr()


def _shapes(config: ModelConfig) -> dict[str, Tensor]:
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


def _stored_names(config: ModelConfig, model: Any) -> dict[str, str]:
    """Find the stored name of every parameter, by the renamings of transformers; tied parameters are stored once."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    steps = get_model_conversion_mapping(model)
    renamings = [step for step in steps if isinstance(step, WeightRenaming)]
    others = [step for step in steps if not isinstance(step, WeightRenaming)]
    state, known = model.state_dict(), {}
    for stored in _shapes(config):
        name, converted = rename_source_key(stored, renamings, others, model.base_model_prefix, state)  # type: ignore[arg-type]
        if converted is None:
            known[name] = stored
    same: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        same.setdefault(id(parameter), []).append(name)
    found: dict[str, str] = {}
    for names in same.values():
        hit = next((known[name] for name in names if name in known), None)
        if hit is None:
            raise UserError(
                f"model.path {config.path}: stores no tensor for {names[0]}; save the model once with save_pretrained of "
                "transformers"
            )
        found |= dict.fromkeys(names, hit)
    return found
