"""Weight files of the base model: where they lie and which dtype their tensors have."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from bigcircuit.config.schema import ModelConfig

EMBEDDED = Path(__file__).parents[1] / "embedded" / "model"
"""Folder of the small model that comes with the package, in transformers format."""
_FLOATING = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


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
    """List the safetensors files of the base model, sorted by name; empty if it is not on this machine."""
    folder = model_folder(config.path, config.revision)
    return [] if folder is None else sorted(folder.glob("*.safetensors"))


def stored_dtype(config: ModelConfig) -> torch.dtype | None:
    """Read the dtype that all floating tensors of the weight files share, from the headers of the files.

    None if they have several, if the model is not on this machine, or if a file cannot be read (loading then names it).
    """
    found: set[str] = set()
    try:
        for path in weight_files(config):
            with safe_open(path, framework="pt") as file:
                found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError):
        return None
    return _FLOATING.get(min(found)) if len(found) == 1 else None


def stay_in_files(config: ModelConfig) -> bool:
    """Return whether loading leaves the weights in their files, mapped into memory: they need no cast.

    An adapter is put on weights of the dtype that is asked for.
    """
    return stored_dtype(config) == getattr(torch, config.dtype)
