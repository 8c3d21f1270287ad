"""Pages name files without the folders of the machine that wrote them."""

import pytest

from bigcircuit.report.share import as_it_is, share


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/models/llama", "…/llama"),
        ("/home/me/my models/my llama/", "…/my llama/"),
        ("~/models/llama", "…/llama"),
        ("C:/Users/me/llama", "…/llama"),
        ("--model.path=/home/me/llama", "--model.path=…/llama"),
        ('{"path": "/home/me/my models/x",\n "task": "/data/a/b"}', '{"path": "…/x",\n "task": "…/b"}'),
        ("model:\n  path: /home/me/llama\noutput: /data/runs/a\n", "model:\n  path: …/llama\noutput: …/a\n"),
        ("/home/me/x.jsonl:5: clean and/or corrupted", "…/x.jsonl:5: clean and/or corrupted"),
        ("see [/data/a/b, /data/a/c]", "see […/b, …/c]"),
    ],
)
def test_absolute_paths_lose_their_folders(text, shown):
    assert share(text) == shown
    assert share(as_it_is(text)) == as_it_is(text), "text of the data stays"


@pytest.mark.parametrize(
    "text",
    [
        "runs/a/b",
        "../a/b",
        "meta-llama/Llama-3",
        "https://a.org/b/c",
        "12/96 passes, 1/2 of them",
        "</div>",
        "data:image/png;base64,a+/b/c",
        "a+/b/c/d",
        3,
        None,
    ],
)
def test_all_else_stays(text):
    assert share(text) == text
