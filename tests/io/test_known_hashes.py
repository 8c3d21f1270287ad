"""Hashes that are remembered: of large files that have not changed since, and of no others."""

import os

import pytest

from bigcircuit.config.schema import ModelConfig
from bigcircuit.io import known_hashes
from bigcircuit.io.files import file_sha256
from bigcircuit.io.known_hashes import cache_file, remember_hashes
from bigcircuit.io.known_hashes import known_hashes as known
from bigcircuit.model.fingerprint import fingerprint


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(known_hashes, "_SMALLEST", 10)
    monkeypatch.setattr(known_hashes, "_SETTLED", -1.0)
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"0123456789")
    return path


def test_a_file_that_did_not_change_is_known(file):
    assert known([file]) == {}
    remember_hashes({file: file_sha256(file)})
    assert known([file]) == {file: file_sha256(file)}
    assert cache_file().is_file()


def test_a_file_that_changed_is_not_known_even_with_its_time_put_back(file):
    remember_hashes({file: file_sha256(file)})
    before = file.stat()
    file.write_bytes(b"012345678X")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns and file.stat().st_size == before.st_size
    assert known([file]) == {}


def test_small_and_fresh_files_are_not_remembered(file, monkeypatch):
    monkeypatch.setattr(known_hashes, "_SETTLED", 60.0)
    remember_hashes({file: file_sha256(file)})
    monkeypatch.setattr(known_hashes, "_SETTLED", -1.0)
    monkeypatch.setattr(known_hashes, "_SMALLEST", 11)
    remember_hashes({file: file_sha256(file)})
    assert not cache_file().exists()


@pytest.mark.parametrize("content", ["{", "[]", '{"a": 1}'])
def test_a_damaged_cache_is_no_error(file, content):
    cache_file().parent.mkdir(parents=True)
    cache_file().write_text(content)
    assert known([file]) == {}
    remember_hashes({file: "abc"})
    assert known([file]) == {file: "abc"}


def test_a_fingerprint_is_taken_once_and_again_when_a_file_changes(file, monkeypatch):
    read = []
    plain = file_sha256
    monkeypatch.setattr(
        "bigcircuit.model.fingerprint.files_sha256", lambda paths, _: [read.append(p) or plain(p) for p in paths]
    )
    config = ModelConfig(path=str(file.parent))
    first = fingerprint(config)
    assert fingerprint(config) == first and read == [file]
    file.write_bytes(b"9876543210")
    assert fingerprint(config)["weights"] == plain(file) != first["weights"]
