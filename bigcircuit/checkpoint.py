"""Run state: gates, optimizer moments, duals and the best validated gates, as safetensors and JSON with hashes.

A checkpoint is a folder `step-N` with `state.safetensors` and `state.json`. It is written under another name, synced and
renamed, so a folder of that name is whole or, if the disk damaged it, found out by its hashes. There is no pickle.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load
from torch import Tensor

from bigcircuit.errors import UserError
from bigcircuit.storage import sync_folder, tensor_sha256, tensors_to_bytes, write_bytes


class State(NamedTuple):
    """Everything a run needs to go on: named tensors and plain data."""

    tensors: dict[str, Tensor]
    data: dict[str, Any]
    base: dict[str, str]
    """Hashes of the model and of the pairs it was made with."""


def save(folder: Path, step: int, state: State, keep: int) -> None:
    """Write the checkpoint of a step and drop all but the last `keep`. Raises UserError when the disk refuses.

    Until the new one is whole on the disk nothing old is touched.
    """
    final = folder / f"step-{step:06d}"
    if final.exists() and _whole(final):
        return
    temporary = folder / f".step-{step:06d}.{os.getpid()}.tmp"
    content = tensors_to_bytes(state.tensors)
    manifest = {
        "step": step,
        "data": state.data,
        "base": state.base,
        "tensors": {name: tensor_sha256(tensor) for name, tensor in sorted(state.tensors.items())},
        "file": hashlib.sha256(content).hexdigest(),
    }
    try:
        _remove_leftovers(folder)
        write_bytes(temporary / "state.safetensors", content)
        write_bytes(temporary / "state.json", _text({**manifest, "sha256": _digest(manifest)}))
        sync_folder(temporary)
        if final.exists():
            shutil.rmtree(final)  # damaged, see above
        temporary.rename(final)
        sync_folder(folder)
        _remove_leftovers(folder)
        for old in _newest_first(folder)[keep:]:
            shutil.rmtree(old)
    except OSError as error:
        raise UserError(
            f"{final}: cannot be written ({error.strerror}); free space or choose another output"
        ) from error


def newest(folder: Path, warn: Callable[[str], None]) -> State | None:
    """The newest checkpoint whose hashes hold; a damaged one is named to `warn` and the one before it is tried."""
    for path in _newest_first(folder):
        try:
            return _load(path)
        except _DAMAGE as error:
            warn(f"{path}: checkpoint is damaged ({error}); falling back to the one before it")
    return None


_DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def _whole(path: Path) -> bool:
    try:
        _load(path)
    except _DAMAGE:
        return False
    return True


def _load(path: Path) -> State:
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
    return State(tensors, manifest["data"], manifest["base"])


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _remove_leftovers(folder: Path) -> None:
    """Folders that a crash left half written; the run's lock makes sure that nobody is writing them now."""
    for left in folder.glob(".step-*.tmp"):
        shutil.rmtree(left, ignore_errors=True)


def _text(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
