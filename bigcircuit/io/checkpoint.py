"""Run state: gates, optimizer moments, duals and the best validated gates, as safetensors and JSON with hashes.

A checkpoint is a folder `step-N` with `state.safetensors` and `state.json`. It is written under another name, synced and
renamed, so a folder of that name is whole or, if the disk damaged it, found out by its hashes. There is no pickle.
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

from bigcircuit.io.files import (
    disk_errors,
    removed_after,
    sync_dir,
    temporary_beside,
    tensor_sha256,
    tensors_to_bytes,
    write_synced,
)


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
    temporary = temporary_beside(final)
    content = tensors_to_bytes(state.tensors)
    manifest = {
        "step": step,
        "data": state.data,
        "base": state.base,
        "tensors": {name: tensor_sha256(tensor) for name, tensor in sorted(state.tensors.items())},
        "file": hashlib.sha256(content).hexdigest(),
    }
    with disk_errors(final), removed_after(temporary):
        temporary.mkdir(parents=True, exist_ok=True)
        write_synced(temporary / "state.safetensors", content)
        write_synced(temporary / "state.json", _text({**manifest, "sha256": _digest(manifest)}))
        sync_dir(temporary)
        if final.exists():
            shutil.rmtree(final)  # damaged, see above
        temporary.rename(final)
        sync_dir(folder)
        paths = _newest_first(folder)
        place = paths.index(final)
        for path in paths[:place] + paths[place + keep :]:  # a newer one is damaged: the run went on from an older one
            shutil.rmtree(path)


def newest(folder: Path, warn: Callable[[str], None]) -> State | None:
    """The newest checkpoint whose hashes hold; a damaged one is named to `warn` and the one before it is tried."""
    paths = _newest_first(folder)
    for path, following in zip(paths, [*paths[1:], None], strict=False):
        try:
            return _load(path)
        except _DAMAGE as error:
            remedy = f"falling back to {following.name}" if following else "no other is left, starting from step 0"
            warn(f"{path}: checkpoint is damaged ({error}); {remedy}")
    return None


_DAMAGE = (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


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
    return sorted(folder.glob("step-*"), key=lambda path: (len(path.name), path.name), reverse=True)


def _text(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _digest(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
