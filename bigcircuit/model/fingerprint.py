"""Fingerprint of the base model: sha256 of its config, weights, tokenizer and adapter."""

import hashlib
from pathlib import Path

from bigcircuit.config.schema import ModelConfig
from bigcircuit.io.files import files_sha256
from bigcircuit.io.known_hashes import known_hashes, remember_hashes
from bigcircuit.model.weight_files import model_folder
from bigcircuit.runtime.progress import ProgressDisplay

TOKENIZER_FILES = (
    "tokenizer*",
    "vocab*",
    "merges*",
    "*.model",
    "*.tiktoken",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""Patterns of the files from which the tokenizers of transformers are made."""

WEIGHTS = "*.safetensors"


def fingerprint(config: ModelConfig, progress: ProgressDisplay | None = None) -> dict[str, str]:
    """Hash the files of the base model. progress: shows how much is hashed.

    Returns "config", "weights" (all weight files), "tokenizer" and "adapter" (all files of these), each a hex sha256, or ""
    without such a file.
    """
    folder = model_folder(config.path, config.revision)
    adapter = model_folder(config.adapter) if config.adapter else None
    files = {
        "config": _files(folder, "config.json"),
        "weights": _files(folder, WEIGHTS),
        "tokenizer": _files(folder, *TOKENIZER_FILES),
        "adapter": _files(adapter, "adapter_config.json", "*.safetensors"),
    }
    every = list(dict.fromkeys(path for paths in files.values() for path in paths))
    hashes = known_hashes(every)
    new = [path for path in every if path not in hashes]
    size = sum(path.stat().st_size for path in new)
    with (progress or ProgressDisplay(enabled=False)).phase("hashing weights", size, "bytes") as phase:
        taken = dict(zip(new, files_sha256(new, phase.advance), strict=True))
    remember_hashes(taken)
    hashes |= taken
    return {part: _joined([hashes[path] for path in paths]) for part, paths in files.items()}


def weight_inodes(config: ModelConfig) -> dict[Path, int]:
    """Return the inode of every weight file of the base model: another one is another file in its place."""
    return {path: path.stat().st_ino for path in _files(model_folder(config.path, config.revision), WEIGHTS)}


def _files(folder: Path | None, *patterns: str) -> list[Path]:
    found = {path for pattern in patterns for path in folder.glob(pattern)} if folder else set()
    return sorted(path for path in found if path.is_file())


def _joined(hashes: list[str]) -> str:
    """Return the only hash, or the hash of several; "" without any."""
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else ""
