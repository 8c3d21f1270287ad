"""Metadata of a circuit file: which model it belongs to."""

import json
from collections.abc import Mapping, Sequence

from bigcircuit.config.schema import ModelConfig
from bigcircuit.model.granularity import GRANULARITIES, LayerShape, granularities_of

HASH_KEYS = {
    "config": "model_config_sha256",
    "weights": "model_weights_sha256",
    "tokenizer": "tokenizer_files_sha256",
    "adapter": "adapter_files_sha256",
}
"""Part of the model's fingerprint -> key of its hash in the metadata. Older files have `tokenizer_sha256`, of tokenizer.json."""


def model_metadata(model: ModelConfig, hashes: Mapping[str, str], shapes: Sequence[LayerShape]) -> dict[str, str]:
    """Describe the model of a circuit for the file's metadata, which `evaluate` and `compare` check.

    hashes: `config`, `weights`, `tokenizer` and `adapter`, as `fingerprint` gives them.
    """
    return {
        "model": _last_part(model.path),
        "model_revision": model.revision or "",
        "adapter": _last_part(model.adapter or ""),
        **{key: hashes[part] for part, key in HASH_KEYS.items()},
        "widths": json.dumps(
            {name: [GRANULARITIES[name].width(shape) for shape in shapes] for name in granularities_of(shapes)}
        ),
    }


def _last_part(path: str) -> str:
    """Return the last part of a path or hub id: a circuit file is passed on, and folders of this machine mean nothing there."""
    return path.rstrip("/").rsplit("/", 1)[-1]
