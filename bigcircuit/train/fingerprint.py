"""Fingerprint of a run: hashes of the base model and of the pairs, compared at resume and between ranks."""

import os
from collections.abc import Mapping

from bigcircuit.config.schema import Config
from bigcircuit.data.dataset import AblationData, TaskData
from bigcircuit.errors import UserError
from bigcircuit.io.run_dir import RunDir
from bigcircuit.model.fingerprint import fingerprint
from bigcircuit.runtime.progress import ProgressDisplay


def run_fingerprint(
    config: Config, data: TaskData, reference: AblationData | None = None, progress: ProgressDisplay | None = None
) -> dict[str, str]:
    """Hash model config, weights, tokenizer and adapter, the pairs, and those that `ablation.data` names; sha256 by name.

    Weights are read once a host: other ranks leave the hashes of the model empty.
    """
    first_on_host = os.environ.get("LOCAL_RANK", "0") == "0"
    found = fingerprint(config.model, progress) if first_on_host else {}
    names = ("config", "weights", "tokenizer", "adapter")
    pairs = {"pairs": data.sha256} | ({} if reference is None else {"ablation data": reference.sha256})
    return {f"model {name}": found.get(name, "") for name in names} | pairs


def check_same_fingerprint(folder: RunDir, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Compare a checkpoint's fingerprint with that of the run. Raises UserError naming what has changed."""
    for name, value in now.items():
        if value and before.get(name) and before[name] != value:
            raise UserError(
                f"{folder.path}: its checkpoint was made with another {name} (sha256 {before[name][:12]}, now {value[:12]}); "
                "put the files back, name another output or use --fresh"
            )
