"""Files: atomic writes, hashes, tensors with the same bytes every time, JSON that is wrong."""

import hashlib
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors import safe_open

from bigcircuit.errors import UserError
from bigcircuit.io.files import (
    check_writable,
    file_sha256,
    files_sha256,
    is_temporary,
    read_json,
    remove_leftovers,
    temporary_path,
    tensor_sha256,
    tensors_to_bytes,
    write_bytes,
    write_json,
)
from tests.helpers.crash_points import crash_everywhere


def test_a_crash_anywhere_in_a_write_leaves_the_old_content_or_the_new(tmp_path):
    path = tmp_path / "file"

    def prepare():
        for left in tmp_path.iterdir():
            left.unlink()
        path.write_bytes(b"old" * 1000)

    seen = []
    for operation in crash_everywhere(lambda: write_bytes(path, b"new" * 2000), prepare):
        assert path.read_bytes() == (b"new" * 2000 if "rename" in seen else b"old" * 1000), operation
        assert all(is_temporary(other) for other in tmp_path.iterdir() if other != path)
        seen.append(operation)
    assert seen == ["mkdir", "open", "write", "sync", "rename", "sync", "remove"]


def test_what_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(
        UserError, match=r"folder: cannot be written \(Is a directory\); free space or choose another output"
    ):
        write_bytes(tmp_path / "folder", b"x")
    with pytest.raises(UserError, match=r"file/below: cannot be written"):
        write_bytes(tmp_path / "file/below", b"x")
    with pytest.raises(UserError, match=r"file: cannot be written"):
        check_writable(tmp_path / "file")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]
    check_writable(tmp_path / "new/folder")
    assert list((tmp_path / "new/folder").iterdir()) == []


def test_hashes_of_several_files_are_those_of_each_and_every_byte_is_counted_once(tmp_path):
    contents = [bytes([number]) * size for number, size in enumerate((0, 1, 5 << 20, 9 << 20, 7))]
    paths = [tmp_path / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    for _ in range(2):  # the second time from memory
        counted = []
        found = files_sha256(paths, counted.append)
        assert found == [hashlib.sha256(content).hexdigest() for content in contents]
        assert sum(counted) == sum(map(len, contents))


def test_an_error_while_files_are_hashed_stops_the_hashing_of_the_others(tmp_path):
    (tmp_path / "large").write_bytes(bytes(64 << 20))
    seen = []

    def count(size):
        seen.append(size)
        time.sleep(0.05)  # the whole file would take 0.8 s

    with pytest.raises(FileNotFoundError):
        files_sha256([tmp_path / "missing", tmp_path / "large"], count)
    assert len(seen) < 16
    assert file_sha256(tmp_path / "large") == hashlib.sha256(bytes(64 << 20)).hexdigest(), "half a hash is not kept"


def test_temporary_names_are_told_from_others(tmp_path):
    assert is_temporary(temporary_path(tmp_path / "a.json")) and is_temporary(temporary_path(tmp_path / "folder"))
    others = (
        "a.json",
        ".hidden",
        "a.tmp",
        ".a.tmp",
        "a.1.tmp",
        ".notes.2024.tmp",
        ".a.1.bigcircuit.tmp.txt",
        "a.1.bigcircuit.tmp",
    )
    assert not any(is_temporary(tmp_path / name) for name in others)


def test_the_hash_of_a_file_is_taken_again_when_it_has_changed(tmp_path):
    path = tmp_path / "file"
    for content in (b"one", b"two", b"x" * (5 << 20)):
        path.write_bytes(content)
        assert file_sha256(path) == file_sha256(path) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.int64])
def test_the_hash_of_a_tensor_is_that_of_its_values_in_order(dtype):
    tensor = (torch.arange(12) * 7 % 5).reshape(3, 4).to(dtype)
    expected = hashlib.sha256(np.ascontiguousarray(tensor.T.numpy()).tobytes()).hexdigest()
    assert tensor_sha256(tensor.T) == expected != tensor_sha256(tensor)
    assert tensor_sha256(tensor.T.contiguous()) == expected, "how the values are laid out does not matter"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_tensors_of_types_that_numpy_lacks_are_hashed_by_their_bytes(dtype):
    tensor = torch.arange(12.0).reshape(3, 4).to(dtype)
    raw = torch.uint8 if tensor.element_size() == 1 else torch.int16
    assert tensor_sha256(tensor) == hashlib.sha256(tensor.view(raw).numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("tensor", [torch.tensor(2.5), torch.zeros(0, 4), torch.tensor(True)])
def test_tensors_without_dimensions_or_values_are_hashed(tensor):
    assert tensor_sha256(tensor) == hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


def test_equal_tensors_and_metadata_are_equal_bytes_that_safetensors_reads(tmp_path):
    tensors = {"b": torch.arange(3.0), "a": torch.ones(2, 2).bool()}
    metadata = {name: f'value of {name} "quoted" é' for name in ("z", "format", "y")}
    content = tensors_to_bytes(tensors, metadata)
    assert content == tensors_to_bytes(dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    (tmp_path / "x.safetensors").write_bytes(content)
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == metadata
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())


def test_json_has_no_infinite_numbers(tmp_path):
    write_json(tmp_path / "x.json", {"a": [float("nan"), 1.5, (float("-inf"), "b")], "c": {"d": float("inf")}})
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [None, 1.5, [None, "b"]], "c": {"d": None}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1', "not readable as JSON .*; make it again"),
        (b"\xff", "not readable as JSON .*; make it again"),
        (b'{"b": 1}', r"not readable as JSON \(it has no a\); make it again"),
        (b"3", "not readable as JSON .*; make it again"),
        (b"[" * 100_000, "not readable as JSON .*; make it again"),
        (None, r"cannot be read \(No such file or directory\); make it again"),
    ],
)
def test_json_that_is_wrong_is_one_line_with_the_remedy(tmp_path, content, message):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=rf"x\.json: {message}"):
        read_json(path, "make it again", "a")


def test_leftovers_are_removed_but_for_those_of_a_process_that_lives(tmp_path):
    path = tmp_path / "out [1]"
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    ).stdout
    made = {owner: temporary_path(path, owner) for owner in (int(gone), os.getpid(), os.getppid())}
    for folder in made.values():
        (folder / "weights").mkdir(parents=True)
    others = [tmp_path / ".out [1].hidden", temporary_path(tmp_path / "out 1", int(gone))]
    for other in others:
        other.mkdir()
    remove_leftovers(path)
    assert sorted(tmp_path.iterdir()) == sorted([made[os.getppid()], *others])
