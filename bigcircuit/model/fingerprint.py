"""Fingerprint of the base model: sha256 of its config, weights, tokenizer and adapter."""

import hashlib
from pathlib import Path

from bigcircuit.config.schema import ModelConfig
from bigcircuit.io.files import file_sha256
from bigcircuit.model.load import resolve_path


def fingerprint(config: ModelConfig) -> dict[str, str]:
    """Hash the files of the base model.

    Returns "config", "weights" (all weight files), "tokenizer" and "adapter", each a hex sha256, or "" without such a file.
    """
    folder = model_folder(resolve_path(config), config.revision)

    def hash_files(pattern: str, folder: Path = folder) -> str:
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return file_sha256(files[0])
        return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest() if files else ""

    return {
        "config": hash_files("config.json"),
        "weights": hash_files("*.safetensors"),
        "tokenizer": hash_files("tokenizer.json"),
        "adapter": hash_files("adapter_model.safetensors", model_folder(config.adapter, None))
        if config.adapter
        else "",
    }


def model_folder(path: str, revision: str | None) -> Path:
    """Return the folder of a model given by folder or hub id; a hub model must be in the local cache."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, revision=revision, local_files_only=True))
