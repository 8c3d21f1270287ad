"""Checkpoints: gates, optimizer moments, duals and the best validated gates, as safetensors and JSON with hashes.

A checkpoint is a folder `step-N` with `state.safetensors` and `state.json`. The folder is written under a temporary name, synced
and renamed, so a crash leaves no half-written checkpoint, and the hashes detect damage by the disk. There is no pickle.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from bigcircuit.distributed.ranks import Ranks
from bigcircuit.io.files import (
    removing,
    reporting_disk_errors,
    sync_dir,
    temporary_path,
    tensor_sha256,
    tensors_to_bytes,
    write_synced,
)


class SavedState(NamedTuple):
    """Content of a checkpoint: what a run needs to resume."""

    tensors: dict[str, Tensor]
    data: dict[str, Any]
    """Plain JSON data."""
    base: dict[str, str]
    """Hashes of the model and of the pairs that the run uses."""


def save(folder: Path, step: int, state: SavedState, keep: int) -> None:
    """Write the checkpoint of a step and remove all but the newest `keep`. Raises UserError if writing fails.

    Older checkpoints are removed once the new one is complete on the disk.
    """
    final = folder / f"step-{step:06d}"
    if final.exists() and _is_intact(final):
        return
    temporary = temporary_path(final)
    content = tensors_to_bytes(state.tensors)
    manifest = {
        "step": step,
        "data": state.data,
        "base": state.base,
        "tensors": {name: tensor_sha256(tensor) for name, tensor in sorted(state.tensors.items())},
        "file": hashlib.sha256(content).hexdigest(),
    }
    with reporting_disk_errors(final), removing(temporary):
        temporary.mkdir(parents=True, exist_ok=True)
        write_synced(temporary / "state.safetensors", content)
        write_synced(temporary / "state.json", _text({**manifest, "sha256": _digest(manifest)}))
        sync_dir(temporary)
        if final.exists():
            shutil.rmtree(final)  # damaged: an intact checkpoint has returned above
        temporary.rename(final)
        sync_dir(folder)
        paths = _newest_first(folder)
        index = paths.index(final)
        # A checkpoint of a later step is damaged: the run resumed from an older one.
        for path in paths[:index] + paths[index + keep :]:
            shutil.rmtree(path)


def load_newest(folder: Path, warn: Callable[[str], None]) -> SavedState | None:
    """Load the newest checkpoint whose hashes match; None without one.

    warn: called with a line about each damaged checkpoint.
    """
    paths = _newest_first(folder)
    for path, older in zip(paths, [*paths[1:], None], strict=False):
        try:
            return _load(path)
        except _DAMAGE as error:
            remedy = f"falling back to {older.name}" if older else "no other is left, starting from step 0"
            warn(f"{path}: checkpoint is damaged ({error}); {remedy}")
    return None


def load_on_all(folder: Path, warn: Callable[[str], None], ranks: Ranks) -> SavedState | None:
    """Load the newest checkpoint on every rank, as `load_newest` does. Raises UserError unless all ranks see the same one."""
    found = load_newest(folder, warn)
    content = "none"
    if found is not None:  # sorted: safetensors gives tensors in any order
        hashes = {name: tensor_sha256(tensor) for name, tensor in found.tensors.items()}
        content = json.dumps([found.data, hashes], sort_keys=True)
    ranks.check_equal({"newest checkpoint": content}, SHARED_FOLDER)
    return found


SHARED_FOLDER = "name an output on a file system that all hosts share"
"""Remedy where ranks do not see the same files of a run."""
_DAMAGE = (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def _is_intact(path: Path) -> bool:
    try:
        _load(path)
    except _DAMAGE:
        return False
    return True


def _load(path: Path) -> SavedState:
    text = (path / "state.json").read_bytes()
    manifest = json.loads(text)
    if _text(manifest) != text or manifest.pop("sha256") != _digest(manifest):
        raise ValueError("state.json has changed")
    if path.name != f"step-{manifest['step']:06d}":
        raise ValueError(f"it is of step {manifest['step']}")
    content = (path / "state.safetensors").read_bytes()
    if hashlib.sha256(content).hexdigest() != manifest["file"]:
        raise ValueError("state.safetensors has changed")
    tensors = load(content)
    if {name: tensor_sha256(tensor) for name, tensor in tensors.items()} != manifest["tensors"]:
        raise ValueError("a tensor has changed")
    return SavedState(tensors, manifest["data"], manifest["base"])


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), key=lambda path: (len(path.name), path.name), reverse=True)


def _text(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
