"""Fingerprint of a run: hashes of the base model and of the pairs, compared at resume and between ranks."""

import os
from collections.abc import Mapping
from pathlib import Path

from bigcircuit.config.schema import Config
from bigcircuit.data.dataset import AblationData, TaskData
from bigcircuit.errors import UserError
from bigcircuit.model.fingerprint import fingerprint, weight_inodes
from bigcircuit.runtime.progress import ProgressDisplay
from bigcircuit.train.own_loss import loss_sha256

MODEL_PARTS = {
    "config": "model config",
    "weights": "model weights",
    "tokenizer": "tokenizer files",
    "adapter": "adapter files",
}
"""Part of the model's fingerprint -> its name in that of a run."""


def run_fingerprint(
    config: Config, data: TaskData, reference: AblationData | None = None, progress: ProgressDisplay | None = None
) -> dict[str, str]:
    """Hash the files of the model, the pairs and those that `ablation.data` names, as text and as token ids; sha256 by name.

    Weights are read once a host: other ranks leave the hashes of the model empty.
    """
    first_on_host = os.environ.get("LOCAL_RANK", "0") == "0"
    found = fingerprint(config.model, progress) if first_on_host else {}
    pairs = {"pairs": data.sha256, "token ids of the pairs": data.tokens_sha256}
    if reference is not None:
        pairs |= {
            "ablation data": reference.sha256,
            "token ids of the ablation data": reference.tokens_sha256,
        }
    if config.train.loss:
        pairs["source of train.loss"] = loss_sha256(config.train.loss)
    return {name: found.get(part, "") for part, name in MODEL_PARTS.items()} | pairs


def check_weights_unchanged(config: Config, known: Mapping[str, str], inodes: Mapping[Path, int]) -> None:
    """Compare weight files with what they were when the run began, so that no gates of a mixture of two models are saved.

    On CPU weights are mapped from their files: what is written into a file is computed with from then on
    (findings/overwritten_file_changes_model.sh). A new file in the place of the old one does no harm. known: fingerprint of the
    run; inodes: of the files when it began. Raises UserError. Files of 64 MiB and more are read only if their times have changed.
    """
    before = known[MODEL_PARTS["weights"]]
    if not before or weight_inodes(config.model) != inodes:
        return
    if (now := fingerprint(config.model)["weights"]) != before:
        raise UserError(
            f"{config.model.path}: weight files were written into while the run computed with them (sha256 {before[:12]}, now "
            f"{now[:12]}), so nothing more is saved; put them back and resume from the last checkpoint, or use --fresh"
        )


def check_same_fingerprint(name: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Compare a checkpoint's fingerprint with that of the run. Raises UserError naming what has changed.

    name: of the run, for the message. A hash that is not known on both sides is not compared.
    """
    for part, value in now.items():
        if value and before.get(part) and before[part] != value:
            raise UserError(
                f"{name}: its checkpoint was made with other {part} (sha256 {before[part][:12]}, now {value[:12]}); "
                "put the files back, name another output or use --fresh"
            )
