"""What a run was made with: the files that a resumed run has to find again."""

import hashlib
from types import SimpleNamespace

import pytest

from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.model.load import EMBEDDED
from bigcircuit.train.fingerprint import MODEL_PARTS, check_same_fingerprint, run_fingerprint
from tests.helpers.interrupted_runs import run_or_resume


def last_byte(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("file", "change", "field"),
    [
        ("model/model.safetensors", last_byte, "model weights"),
        (
            "model/config.json",
            lambda content: content.replace(b'"rms_norm_eps": ', b'"rms_norm_eps": 1'),
            "model config",
        ),
        ("model/tokenizer.json", lambda content: content.replace(b'"version": ', b'"version":  '), "tokenizer files"),
        ("model/tokenizer_config.json", lambda content: content.replace(b"{", b"{ ", 1), "tokenizer files"),
        ("pairs.jsonl", lambda content: content.replace(b'" he"', b'" it"'), "pairs"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_other_files_under_the_same_names_are_refused_by_name(stopped_run, file, change, field):
    folder, overrides = stopped_run
    before = (folder / file).read_bytes()
    assert change(before) != before
    (folder / file).write_bytes(change(before))
    try:
        with pytest.raises(
            UserError, match=rf"made with other {field} \(sha256 \w{{12}}, now \w{{12}}\); put the files"
        ):
            run_or_resume(folder / "run", Ranks(), **overrides)
    finally:
        (folder / file).write_bytes(before)


PAIRS, OTHERS = (SimpleNamespace(sha256=one * 64, tokens_sha256=two * 64) for one, two in ("ac", "bd"))


def test_a_fingerprint_holds_the_hashes_of_the_model_and_of_all_pairs():
    found = run_fingerprint(load(None), PAIRS, OTHERS)
    hashes = {
        "model config": "config.json",
        "model weights": "model.safetensors",
    }
    expected = {name: hashlib.sha256((EMBEDDED / file).read_bytes()).hexdigest() for name, file in hashes.items()}
    of_files = [hashlib.sha256((EMBEDDED / f"tokenizer{end}.json").read_bytes()).hexdigest() for end in ("", "_config")]
    assert found == {
        **expected,
        "tokenizer files": hashlib.sha256("".join(of_files).encode()).hexdigest(),
        "adapter files": "",
        "pairs": "a" * 64,
        "token ids of the pairs": "c" * 64,
        "ablation data": "b" * 64,
        "token ids of the ablation data": "d" * 64,
    }
    assert not [name for name in run_fingerprint(load(None), PAIRS) if "ablation data" in name]


def test_the_model_is_read_by_one_rank_a_host(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr("bigcircuit.train.fingerprint.fingerprint", pytest.fail)
    found = run_fingerprint(load(None), PAIRS)
    assert found["pairs"] == "a" * 64
    assert [found[name] for name in MODEL_PARTS.values()] == [""] * 4


def test_hashes_that_are_not_known_on_both_sides_are_not_compared():
    known = {"model weights": "1" * 64, "pairs": "2" * 64}
    for before, now in (
        (known, known),
        (known, {**known, "model weights": ""}),
        ({**known, "model weights": ""}, known),
        ({"pairs": "2" * 64}, known),
        (known, {"pairs": "2" * 64}),
    ):
        check_same_fingerprint("runs/a", before, now)
    with pytest.raises(
        UserError,
        match=r"runs/a: its checkpoint was made with other pairs \(sha256 2{12}, now 3{12}\); put the files back",
    ):
        check_same_fingerprint("runs/a", known, {**known, "pairs": "3" * 64})
