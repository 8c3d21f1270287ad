"""Fingerprints of models, against hashes taken by hand."""

import hashlib

import pytest

from bigcircuit.config.schema import ModelConfig
from bigcircuit.model.fingerprint import fingerprint


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def folder(tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_each_part_is_the_hash_of_its_file(folder):
    found = fingerprint(ModelConfig(path=str(folder)))
    assert found == {
        "config": sha256(b"config.json"),
        "weights": sha256(b"model.safetensors"),
        "tokenizer": sha256(b"tokenizer.json"),
        "adapter": "",
    }


def test_weights_in_several_files_are_hashed_in_the_order_of_their_names(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model-00002-of-00002.safetensors").write_bytes(b"two")
    (folder / "model-00001-of-00002.safetensors").write_bytes(b"one")
    expected = sha256((sha256(b"one") + sha256(b"two")).encode())
    assert fingerprint(ModelConfig(path=str(folder)))["weights"] == expected


def test_an_adapter_has_a_hash_of_its_own_and_a_missing_tokenizer_none(folder, tmp_path):
    (folder / "tokenizer.json").unlink()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_model.safetensors").write_bytes(b"low rank")
    config = ModelConfig(path=str(folder), adapter=str(tmp_path / "adapter"))
    found = fingerprint(config)
    assert (found["adapter"], found["tokenizer"]) == (sha256(b"low rank"), "")
    (tmp_path / "adapter/adapter_config.json").write_bytes(b"lora_alpha 64")
    assert fingerprint(config)["adapter"] == sha256((sha256(b"lora_alpha 64") + sha256(b"low rank")).encode())


@pytest.mark.parametrize(
    "name",
    [
        "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
        "tokenizer.model", "spiece.model", "qwen.tiktoken",
    ],
)  # fmt: skip
def test_every_file_of_a_tokenizer_counts(folder, name):
    config = ModelConfig(path=str(folder))
    seen = {fingerprint(config)["tokenizer"]}
    for content in (b"one", b"other"):
        (folder / name).write_bytes(content)
        seen.add(fingerprint(config)["tokenizer"])
    (folder / "tokenizer.json").unlink()
    assert fingerprint(config)["tokenizer"] == sha256(b"other") and len(seen) == 3


def test_a_file_that_changes_in_the_same_process_is_read_again(folder):
    config = ModelConfig(path=str(folder))
    before = fingerprint(config)
    (folder / "model.safetensors").write_bytes(b"other weights")
    after = fingerprint(config)
    assert after["weights"] == sha256(b"other weights") != before["weights"]
    assert after["config"] == before["config"]
