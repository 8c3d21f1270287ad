"""Fingerprint of the base model: sha256 of its config, weights, tokenizer and adapter."""

import hashlib
from pathlib import Path

from bigcircuit.config.schema import ModelConfig
from bigcircuit.io.files import files_sha256
from bigcircuit.model.load import resolve_path
from bigcircuit.runtime.progress import ProgressDisplay


def fingerprint(config: ModelConfig, progress: ProgressDisplay | None = None) -> dict[str, str]:
    """Hash the files of the base model. progress: shows how much is hashed.

    Returns "config", "weights" (all weight files), "tokenizer" and "adapter", each a hex sha256, or "" without such a file.
    """
    folder = _folder(resolve_path(config), config.revision)
    adapter = sorted(_folder(config.adapter, None).glob("adapter_model.safetensors")) if config.adapter else []
    files = {
        "config": sorted(folder.glob("config.json")),
        "weights": sorted(folder.glob("*.safetensors")),
        "tokenizer": sorted(folder.glob("tokenizer.json")),
        "adapter": adapter,
    }
    every = list(dict.fromkeys(path for paths in files.values() for path in paths))
    size = sum(path.stat().st_size for path in every)
    with (progress or ProgressDisplay(enabled=False)).phase("hashing weights", size, "bytes") as phase:
        hashes = dict(zip(every, files_sha256(every, phase.advance), strict=True))
    return {part: _joined([hashes[path] for path in paths]) for part, paths in files.items()}


def _joined(hashes: list[str]) -> str:
    """Return the only hash, or the hash of several; "" without any."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else ""


def _folder(path: str, revision: str | None) -> Path:
    """Return the folder of a model given by folder or hub id; a hub model must be in the local cache."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, revision=revision, local_files_only=True))
