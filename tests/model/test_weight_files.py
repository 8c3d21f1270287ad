"""Weight files as transformers chooses them, and what their headers say."""

import json

import pytest
import torch

from bigcircuit.config.schema import ModelConfig
from bigcircuit.errors import UserError
from bigcircuit.model.weight_files import stored_dtype, stored_tensors, weight_files
from tests.helpers.broken_models import GIT_LFS_POINTER, changed_model, content, in_shards, tensors

SECOND, INDEX = "model-00002-of-00002.safetensors", "model.safetensors.index.json"


def after_sharding(change):
    def both(folder):
        in_shards(folder)
        change(folder)

    return both


def cut(name, end):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:end])


BROKEN = {
    "no shard": (after_sharding(lambda f: (f / SECOND).unlink()), f"{INDEX} names {SECOND}, which is not there; copy or"),
    "no shards": (
        after_sharding(lambda f: [path.unlink() for path in f.glob("model-*")]),
        f"{INDEX} names model-00001-of-00002.safetensors and 1 more that are not there; copy or download what is missing",
    ),
    "no index": (after_sharding(lambda f: (f / INDEX).unlink()), "only model-00001-of-00002.safetensors and 1 more; save the"),
    "index": (after_sharding(content(INDEX, b"{")), f"{INDEX} cannot be read (Expecting property name"),
    "index without files": (after_sharding(content(INDEX, b'{"metadata": {}, "weight_map": {}}')), f"{INDEX} names no file"),
    "index of a list": (after_sharding(content(INDEX, b"[]")), f"{INDEX} cannot be read (TypeError: list indices"),
    "half a shard": (after_sharding(cut(SECOND, -10)), f"{SECOND} cannot be read as safetensors (SafetensorError: Error while"),
    "pointer": (
        content("model.safetensors", GIT_LFS_POINTER),
        "model.safetensors cannot be read as safetensors: model.safetensors is a pointer of git-lfs; run git lfs pull there",
    ),
    "pointer of a shard": (after_sharding(content(SECOND, GIT_LFS_POINTER)), f"{SECOND} is a pointer of git-lfs"),
    "empty": (content("model.safetensors", b""), "model.safetensors cannot be read as safetensors (SafetensorError: "),
    "web page": (content("model.safetensors", b"<html>404</html>"), "cannot be read as safetensors (SafetensorError: "),
    "pickle": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        f"there is no file named model.safetensors or {INDEX}, only pytorch_model.bin; save the model with save_pretrained",
    ),
    "link": (
        lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").symlink_to(f / "nowhere")),
        "model.safetensors cannot be read as safetensors (No such file or directory",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_files_that_cannot_be_read_are_named(tmp_path, change, message):
    config = changed_model(tmp_path / "model", change)
    with pytest.raises(UserError) as refused:
        stored_tensors(config)
    assert str(refused.value).startswith(f"model.path {config.path}: ") and message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_only_the_files_that_are_loaded_count(tmp_path):
    """Mistral's folders hold the same weights once more, and adapters beside the weights have dtypes of their own."""
    from safetensors.torch import save_file

    def more(folder):
        save_file({"x": torch.zeros(1, dtype=torch.bfloat16)}, folder / "consolidated.safetensors")

    config = changed_model(tmp_path / "a", more)
    assert [path.name for path in weight_files(config)] == ["model.safetensors"]
    assert stored_dtype(config) == torch.float32
    sharded = changed_model(tmp_path / "b", after_sharding(more))
    assert [path.name for path in weight_files(sharded)] == [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert json.dumps(sorted(stored_tensors(sharded))) == json.dumps(sorted(stored_tensors(config)))


def test_dtypes_of_the_headers(tmp_path):
    def to(*dtypes):
        return tensors(lambda w: w.update({k: w[k].to(dtypes[i % len(dtypes)]) for i, k in enumerate(sorted(w))}))

    assert stored_dtype(changed_model(tmp_path / "one", to(torch.bfloat16))) == torch.bfloat16
    assert stored_dtype(changed_model(tmp_path / "two", to(torch.bfloat16, torch.float32))) is None
    assert stored_dtype(changed_model(tmp_path / "int", to(torch.int8))) is None
    assert stored_dtype(ModelConfig(path="nobody/nothing")) is None
