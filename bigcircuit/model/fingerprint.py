"""Fingerprint a checkpoint: sha256 of its config, weights, tokenizer and adapter."""

import hashlib
from pathlib import Path

from bigcircuit.config.schema import ModelConfig
from bigcircuit.io.files import file_sha256
from bigcircuit.model.load import resolve


def fingerprint(config: ModelConfig) -> dict[str, str]:
    """Hashes of the base model: `config`, `weights` (of all weight files), `tokenizer`, `adapter`, each sha256 or ""."""
    folder = _folder(resolve(config), config.revision)

    def together(pattern: str, folder: Path = folder) -> str:
        files = sorted(folder.glob(pattern))
        if len(files) == 1:
            return file_sha256(files[0])
        return hashlib.sha256("".join(map(file_sha256, files)).encode()).hexdigest() if files else ""

    return {
        "config": together("config.json"),
        "weights": together("*.safetensors"),
        "tokenizer": together("tokenizer.json"),
        "adapter": together("adapter_model.safetensors", _folder(config.adapter, None)) if config.adapter else "",
    }


def _folder(path: str, revision: str | None) -> Path:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(path, revision=revision, local_files_only=True))
