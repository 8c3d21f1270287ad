"""Checkpoints: a crash in the middle of a save, every kind of damage, and no pickle."""

import hashlib
import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch.distributed as dist

import bigcircuit
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.io import checkpoint
from tests.helpers.bad_disks import DAMAGES, damages
from tests.helpers.crash_points import crash_everywhere
from tests.helpers.interrupted_runs import states_equal, states_of, unexpected


def test_a_crash_anywhere_in_a_save_leaves_one_state_or_the_other(tmp_path, undisturbed):
    states = states_of(undisturbed / "checkpoints")
    before, after = states["step-000028"], states["step-000030"]

    def prepare():
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        for name in ("step-000024", "step-000028"):
            shutil.copytree(undisturbed / "checkpoints" / name, tmp_path / "c" / name)

    seen = []
    for operation in crash_everywhere(lambda: checkpoint.save(tmp_path / "c", 30, after, 2), prepare):
        found = checkpoint.load_newest(tmp_path / "c", unexpected)
        assert states_equal(found, after if "rename" in seen else before), (len(seen), operation)
        seen.append(operation)
    assert seen[:10] == ["mkdir", *("open", "write", "sync") * 2, "sync", "rename", "sync"]
    assert seen[10:] and set(seen[10:]) <= {"remove", "rmdir"}


def test_a_crash_while_a_damaged_checkpoint_is_replaced_leaves_the_one_before(tmp_path, undisturbed):
    states = states_of(undisturbed / "checkpoints")

    def prepare():
        shutil.rmtree(tmp_path / "c", ignore_errors=True)
        shutil.copytree(undisturbed / "checkpoints/step-000024", tmp_path / "c/step-000024")
        shutil.copytree(undisturbed / "checkpoints/step-000028", tmp_path / "c/step-000028")
        (tmp_path / "c/step-000028/state.json").unlink()

    for _ in crash_everywhere(lambda: checkpoint.save(tmp_path / "c", 28, states["step-000028"], 2), prepare):
        found = checkpoint.load_newest(tmp_path / "c", lambda _: None)
        assert any(states_equal(found, states[name]) for name in ("step-000024", "step-000028"))


def test_every_damage_is_found(tmp_path, undisturbed):
    folder = tmp_path / "three"
    for name in ("step-000020", "step-000024", "step-000028"):
        shutil.copytree(undisturbed / "checkpoints" / name, folder / name)
    seen = list(damages(folder, tmp_path, 20 * len(DAMAGES), seed=0))
    assert [damage.kind for damage in seen if not damage.found] == []
    assert {damage.kind for damage in seen} == set(DAMAGES)


def test_a_damaged_checkpoint_does_not_push_a_whole_one_out(tmp_path, undisturbed):
    """The run went on from an older one, and keeps one only: what it writes now is not the oldest."""
    shutil.copytree(undisturbed / "checkpoints", tmp_path / "c")
    (tmp_path / "c/step-000030/state.json").write_bytes(b"{}")
    state = states_of(undisturbed / "checkpoints")["step-000012"]
    shutil.rmtree(tmp_path / "c/step-000012")
    checkpoint.save(tmp_path / "c", 12, state, keep=1)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["step-000012"]


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_no_pickle_is_read(tmp_path, undisturbed):
    """Not even one whose hashes are right."""
    path = tmp_path / "c/step-000030"
    shutil.copytree(undisturbed / "checkpoints/step-000030", path)
    content = pickle.dumps(Trap(tmp_path / "sprung"))
    manifest = json.loads((path / "state.json").read_text())
    del manifest["sha256"]
    manifest["file"] = hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (path / "state.json").write_text(json.dumps({**manifest, "sha256": digest}, indent=2) + "\n")
    (path / "state.safetensors").write_bytes(content)
    said = []
    assert checkpoint.load_newest(tmp_path / "c", said.append) is None
    assert len(said) == 1 and "has changed" not in said[0]
    assert not (tmp_path / "sprung").exists()
    for file in Path(bigcircuit.__file__).parent.rglob("*.py"):
        assert not re.search(r"\bimport pickle|\btorch\.load\((?!.*weights_only=True\))", file.read_text()), file


def test_a_checkpoint_is_small_and_holds_everything(stopped_run):
    folder, _ = stopped_run
    (path,) = (folder / "run/checkpoints").iterdir()
    assert {file.name for file in path.iterdir()} == {"state.safetensors", "state.json"}
    state = checkpoint.load_newest(path.parent, pytest.fail)
    kinds = {name.split(".")[1] for name in state.tensors}
    assert kinds == {"log_alpha", "exp_avg", "exp_avg_sq"}
    files = {"model config", "model weights", "tokenizer files", "adapter files"}
    assert set(state.base) == {"settings", *files, "pairs", "token ids of the pairs"}
    manifest = json.loads((path / "state.json").read_text())
    assert manifest["tensors"].keys() == state.tensors.keys()
    assert all(len(digest) == 64 for digest in [*manifest["tensors"].values(), manifest["file"], manifest["sha256"]])


def test_ranks_that_do_not_see_the_same_checkpoint_do_not_go_on(tmp_path, undisturbed, monkeypatch):
    folder, own = undisturbed / "checkpoints", []

    def all_equal(of_all, given):
        own.append(given)
        for one in of_all:
            one.copy_(given)

    monkeypatch.setattr(dist, "all_gather", all_equal)
    assert states_equal(
        checkpoint.load_on_all(folder, unexpected, Ranks(size=2)), checkpoint.load_newest(folder, unexpected)
    )
    assert checkpoint.load_on_all(tmp_path, unexpected, Ranks(size=2)) is None

    def as_gathered(of_all, given):
        of_all[0].copy_(given)
        of_all[1].copy_(own[1])  # of a rank that sees an empty folder

    monkeypatch.setattr(dist, "all_gather", as_gathered)
    with pytest.raises(
        UserError, match="rank 1 has another newest checkpoint than rank 0; name an output on a file system"
    ):
        checkpoint.load_on_all(folder, unexpected, Ranks(size=2))
