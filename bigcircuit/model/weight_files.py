"""Weight files of the base model: where they lie, and the names, shapes and dtypes of their tensors."""

import json
import os
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from bigcircuit.config.schema import ModelConfig
from bigcircuit.errors import UserError
from bigcircuit.model.library_errors import explain_library_errors

EMBEDDED = Path(__file__).parents[1] / "embedded" / "model"
"""Folder of the small model that comes with the package, in transformers format."""
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
"""Names under which transformers looks for weights: in one file, or in several that an index lists."""
_FLOATING = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NOT_FLOATING = torch.uint8
"""Stands for every stored dtype that is not one of these: integers, and floating types of 8 bits and fewer, which need scales."""
_OTHER_WEIGHTS = (".bin", ".gguf", ".h5", ".msgpack", ".pt", ".pth", ".safetensors")
"""Ends of names of weight files in other formats or without an index."""
COPY_AGAIN = "copy or download the file again"


def model_folder(path: str, revision: str | None = None) -> Path | None:
    """Return the folder of a model given by folder, hub id or `embedded`; None for a hub model that is not in the local cache."""
    folder = EMBEDDED if path == "embedded" else Path(path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(path, revision=revision, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, HfHubHTTPError, OSError):
        return None


def weight_files(config: ModelConfig) -> list[Path]:
    """List the safetensors files that transformers loads the base model from; empty if they are not all on this machine.

    Raises UserError for a folder whose weights have another format, whose index cannot be read, or that lacks files which the index
    names.
    """
    folder, subject = model_folder(config.path, config.revision), f"model.path {config.path}"
    if folder is None:
        return []
    if os.path.lexists(folder / WEIGHTS):  # a link to nowhere is named when it is read
        return [folder / WEIGHTS]
    if not (folder / INDEX).exists():
        others = sorted(path.name for path in folder.iterdir() if path.suffix in _OTHER_WEIGHTS)
        if others and _is_local(config.path):
            raise UserError(
                f"{subject}: there is no file named {WEIGHTS} or {INDEX}, only {others[0]}"
                f"{f' and {len(others) - 1} more' if len(others) > 1 else ''}; save the model with save_pretrained of transformers"
            )
        return []
    with explain_library_errors(f"{subject}: {INDEX} cannot be read", folder, COPY_AGAIN):
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        # Both are read by transformers.
        _, files = index["metadata"], [folder / name for name in sorted(set(index["weight_map"].values()))]
    if not files:
        raise UserError(f"{subject}: {INDEX} names no file; {COPY_AGAIN}")
    missing = [path.name for path in files if not path.exists()]
    if missing and _is_local(config.path):
        more = f" and {len(missing) - 1} more that are" if len(missing) > 1 else ", which is"
        raise UserError(f"{subject}: {INDEX} names {missing[0]}{more} not there; copy or download what is missing")
    return [] if missing else files


def _is_local(path: str) -> bool:
    """Whether a model is given by a folder, from which nothing is downloaded."""
    return path == "embedded" or Path(path).expanduser().is_dir()


def stored_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Read names, shapes and dtypes of all tensors of the weight files, from the headers of the files: tensors on the meta device.

    Raises UserError for a file that cannot be read.
    """
    found = {}
    for path in weight_files(config):
        subject = f"model.path {config.path}: {path.name} cannot be read as safetensors"
        with explain_library_errors(subject, path.parent, COPY_AGAIN), safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                tensor = file.get_slice(name)
                dtype = _FLOATING.get(tensor.get_dtype(), NOT_FLOATING)
                found[name] = torch.empty(tensor.get_shape(), dtype=dtype, device="meta")
    return found


def stored_dtype(config: ModelConfig) -> torch.dtype | None:
    """Read the dtype that all tensors of the weight files share, from the headers of the files.

    None if they have several or one that no weights are computed with, or if the model is not on this machine. Raises
    UserError for a file that cannot be read.
    """
    found = {tensor.dtype for tensor in stored_tensors(config).values()}
    return found.pop() if len(found) == 1 and NOT_FLOATING not in found else None
