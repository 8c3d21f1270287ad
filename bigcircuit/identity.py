"""What a run stands on: hashes of the base model and of the pairs, compared at resume and between ranks; a circuit's model."""

import json
import os
from collections.abc import Mapping, Sequence

from bigcircuit.config import Config, ModelConfig
from bigcircuit.errors import UserError
from bigcircuit.frozen.load import fingerprint
from bigcircuit.gates.granularity import GRANULARITIES, LayerShape
from bigcircuit.run_folder import RunFolder
from bigcircuit.tasks.data import Reference, TaskData


def identity(config: Config, data: TaskData, reference: Reference | None = None) -> dict[str, str]:
    """sha256 of model config, weights, tokenizer and adapter, of the pairs, and of those that `ablation.data` names, by name.

    Weights are read once a host: other ranks leave the hashes of the model empty.
    """
    first_on_host = os.environ.get("LOCAL_RANK", "0") == "0"
    found = fingerprint(config.model) if first_on_host else {}
    names = ("config", "weights", "tokenizer", "adapter")
    pairs = {"pairs": data.sha256} | ({} if reference is None else {"ablation data": reference.sha256})
    return {f"model {name}": found.get(name, "") for name in names} | pairs


def check_same(folder: RunFolder, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Raises UserError naming what has changed since the checkpoint was written."""
    for name, value in now.items():
        if value and before.get(name) and before[name] != value:
            raise UserError(
                f"{folder.path}: its checkpoint was made with another {name} (sha256 {before[name][:12]}, now {value[:12]}); "
                "put the files back, name another output or use --fresh"
            )


def of_model(model: ModelConfig, hashes: Mapping[str, str], shapes: Sequence[LayerShape]) -> dict[str, str]:
    """Metadata of a circuit file that says which model it is of: what `evaluate` and `compare` check.

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
