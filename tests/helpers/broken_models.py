"""Copies of the embedded model's folder with one thing changed in them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from bigcircuit.config.schema import ModelConfig
from bigcircuit.model.load import EMBEDDED

Change = Callable[[Path], object]
"""Change of a folder."""
GIT_LFS_POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 12345\n"
)


def changed_model(folder: Path, change: Change) -> ModelConfig:
    """Copy the embedded model to a folder and change the copy."""
    shutil.copytree(EMBEDDED, folder)
    change(folder)
    return ModelConfig(path=str(folder))


def json_values(name: str, **values: Any) -> Change:
    """Set keys of a JSON file; None takes a key out."""

    def change(folder: Path) -> None:
        kept = {key: value for key, value in json.loads((folder / name).read_text()).items() if key not in values}
        new = {key: value for key, value in values.items() if value is not None}
        (folder / name).write_text(json.dumps(kept | new))

    return change


def content(name: str, data: bytes) -> Change:
    """Write a file."""
    return lambda folder: (folder / name).write_bytes(data)


def tensors(edit: Callable[[dict[str, Tensor]], object], name: str = "model.safetensors") -> Change:
    """Edit the tensors of a safetensors file in place."""

    def change(folder: Path) -> None:
        found = {key: tensor.clone() for key, tensor in load_file(folder / name).items()}
        edit(found)
        save_file(found, folder / name, {"format": "pt"})

    return change


def in_shards(folder: Path) -> None:
    """Divide the weights into two files with an index."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, place = sorted(weights), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
        place |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
