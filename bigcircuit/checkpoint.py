"""Run state: gates, optimizer moments, duals and the best validated gates, as safetensors and JSON with hashes.

A checkpoint is a folder `step-N` with `state.safetensors` and `state.json`; it is written under another name and renamed,
so a folder of that name is whole or, if the disk damaged it, found out by its hashes. There is no pickle.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from bigcircuit.errors import UserError
from bigcircuit.storage import tensor_sha256, write_json, write_tensors


class State(NamedTuple):
    """Everything a run needs to go on: named tensors and plain data."""

    tensors: dict[str, Tensor]
    data: dict[str, Any]


def save(folder: Path, step: int, state: State, keep: int) -> None:
    """Write the checkpoint of a step and drop all but the last `keep`. Raises UserError when the disk refuses."""
    final = folder / f"step-{step:06d}"
    if final.exists():
        return
    temporary = folder / f".step-{step:06d}.{os.getpid()}.tmp"
    try:
        write_tensors(temporary / "state.safetensors", state.tensors)
        hashes = {name: tensor_sha256(tensor) for name, tensor in sorted(state.tensors.items())}
        manifest = {"step": step, "data": state.data, "tensors": hashes}
        write_json(temporary / "state.json", {**manifest, "sha256": _digest(manifest)})
        temporary.rename(final)
    except OSError as error:
        raise UserError(
            f"{final}: cannot be written ({error.strerror}); free space or choose another output"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _newest_first(folder)[keep:]:
        shutil.rmtree(old)


def newest(folder: Path, warn: Callable[[str], None]) -> State | None:
    """The newest checkpoint whose hashes hold; a damaged one is named to `warn` and the one before it is tried."""
    for path in _newest_first(folder):
        try:
            return _load(path)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            warn(f"{path}: checkpoint is damaged ({error}); falling back to the one before it")
    return None


def _load(path: Path) -> State:
    manifest = json.loads((path / "state.json").read_text(encoding="utf-8"))
    stated = manifest.pop("sha256")
    if _digest(manifest) != stated:
        raise ValueError("state.json has changed")
    tensors = load_file(path / "state.safetensors")
    for name in manifest["tensors"].keys() | tensors.keys():
        if name not in tensors or manifest["tensors"].get(name) != tensor_sha256(tensors[name]):
            raise ValueError(f"tensor {name} has changed")
    return State(tensors, manifest["data"])


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*"), reverse=True)


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
