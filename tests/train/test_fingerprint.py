"""What a run was made with: the files that a resumed run has to find again."""

import pytest

from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from tests.helpers.interrupted_runs import once


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
        ("model/tokenizer.json", lambda content: content.replace(b'"version": ', b'"version":  '), "model tokenizer"),
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
            UserError, match=rf"made with another {field} \(sha256 \w{{12}}, now \w{{12}}\); put the files"
        ):
            once(folder / "run", Ranks(), **overrides)
    finally:
        (folder / file).write_bytes(before)
