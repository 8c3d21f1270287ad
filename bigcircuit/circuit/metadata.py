"""Metadata of a circuit file: which model it belongs to."""

import json
from collections.abc import Mapping, Sequence

from bigcircuit.config.schema import ModelConfig
from bigcircuit.model.granularity import GRANULARITIES, LayerShape


def model_metadata(model: ModelConfig, hashes: Mapping[str, str], shapes: Sequence[LayerShape]) -> dict[str, str]:
    """Describe the model of a circuit for the file's metadata, which `evaluate` and `compare` check.

    hashes: `config`, `weights` and `tokenizer`, as `fingerprint` gives them.
    """
    return {
        "model": model.path if model.path == "embedded" else model.path.rstrip("/").rsplit("/", 1)[-1],
        "model_revision": model.revision or "",
        "model_config_sha256": hashes["config"],
        "model_weights_sha256": hashes["weights"],
        "tokenizer_sha256": hashes["tokenizer"],
        "adapter": model.adapter or "",
        "widths": json.dumps({name: [g.width(shape) for shape in shapes] for name, g in GRANULARITIES.items()}),
    }
