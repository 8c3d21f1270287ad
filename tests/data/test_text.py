"""Windows of documents, and their division by document, against examples made by hand."""

import json

import pytest
import torch

from bigcircuit.config.load import load
from bigcircuit.data.collate import collate
from bigcircuit.data.dataset import load_task
from bigcircuit.data.splits import split_windows
from bigcircuit.data.text import read_documents, windows_of
from bigcircuit.errors import UserError
from bigcircuit.model.load import load_config, load_tokenizer
from tests.helpers.text_windows import random_windows

TEN = tuple(range(10, 20))


@pytest.mark.parametrize(
    ("window", "stride", "expected"),
    [
        (4, None, [((10,), (11, 12, 13)), ((14,), (15, 16, 17)), ((18,), (19,))]),
        (10, None, [((10,), TEN[1:])]),
        (64, None, [((10,), TEN[1:])]),
        # Every token but the first is scored once, with two tokens of context at least.
        (4, 2, [((10,), (11, 12, 13)), ((12, 13), (14, 15)), ((14, 15), (16, 17)), ((16, 17), (18, 19))]),
        (4, 3, [((10,), (11, 12, 13)), ((13,), (14, 15, 16)), ((16,), (17, 18, 19))]),
        # The token after the last whole window has no context of its own.
        (3, None, [((10,), (11, 12)), ((13,), (14, 15)), ((16,), (17, 18))]),
    ],
)
def test_windows_of_ten_tokens(window, stride, expected):
    assert [(context, scored) for _, _, context, scored in windows_of([TEN], window, stride)] == expected


@pytest.mark.parametrize("stride", [1, 3, 7])
def test_overlapping_windows_score_every_token_but_the_first_once(stride):
    found = [token for _, _, _, scored in windows_of([tuple(range(50))], 8, stride) for token in scored]
    assert found == list(range(1, 50))


def test_documents_stay_apart_and_one_token_is_no_window():
    found = [(number, context + scored) for number, _, context, scored in windows_of([(1,), (2, 3), (), (4, 5, 6)], 2)]
    assert found == [(1, (2, 3)), (3, (4, 5))]


def test_plain_text_is_split_at_blank_lines_or_at_end_of_text_marks(tmp_path):
    file = tmp_path / "corpus.txt"
    file.write_text("one\ntwo\n\n\nthree\n\none\ntwo\n")
    assert [(d.text, d.source) for d in read_documents(str(file), "text")] == [
        ("one\ntwo", f"{file}:1"),
        ("three", f"{file}:5"),
    ]  # the same text is one document
    file.write_text("one\n\ntwo\n<|endoftext|>\nthree\n<|endoftext|>\n")
    assert [d.text for d in read_documents(str(file), "text")] == ["one\n\ntwo", "three"]


def corpus(tmp_path, rows, name="corpus.jsonl"):
    file = tmp_path / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def text_task(path, **settings):
    values = {"task.name": "text", "task.path": path, "task.text.window": 16, "ablation.kind": "zero", **settings}
    config = load(None, values)
    return load_task(config.task, load_tokenizer(config.model), load_config(config.model))


def test_no_document_is_in_two_splits(tmp_path):
    rows = [{"text": f"Once upon a time there was a dog number {n}. " * (1 + n % 4)} for n in range(40)]
    data = text_task(corpus(tmp_path, rows), **{"task.text.window": 16})
    owners = [{example.document for example in examples} for examples in data.splits.values()]
    assert all(owners) and not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])
    assert set().union(*owners) == set(range(40))
    sizes = [len(examples) for examples in data.splits.values()]
    assert abs(sizes[0] / sum(sizes) - 0.4) < 0.05 and abs(sizes[2] / sum(sizes) - 0.5) < 0.05


def test_a_column_of_splits_wins_and_token_ids_stay_as_they_are(tmp_path):
    rows = [{"ids": [5, 6, 7], "split": "train"}, {"ids": [7, 8], "split": "test"}, {"ids": [9, 9], "split": "train"}]
    data = text_task(corpus(tmp_path, rows), **{"task.text.column": "ids"})
    assert [e.clean + e.answers[0] for e in data.splits["train"]] == [(5, 6, 7), (9, 9)]
    assert [e.clean + e.answers[0] for e in data.splits["test"]] == [(7, 8)]


def test_parquet_and_saved_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"story": [f"There was a cat named {name}." for name in ("Tom", "Sue", "Ann", "Bob")]}
    data = datasets.Dataset.from_dict(rows)
    data.to_parquet(tmp_path / "corpus.parquet")
    data.save_to_disk(tmp_path / "saved")
    found = [text_task(str(tmp_path / name), **{"task.text.column": "story"}) for name in ("corpus.parquet", "saved")]
    assert found[0].tokens_sha256 == found[1].tokens_sha256 and found[0].sha256 == found[1].sha256
    assert sum(map(len, found[0].splits.values())) == 4


REFUSALS = {
    "no column text; it has story": [{"story": "a b"}, {"story": "c d"}],
    "split is 'held'": [{"text": "a b c", "split": "held"}],
    "is of type int; give text or token ids": [{"text": 5}],
    "its text is in split test and": [{"text": "a b", "split": "train"}, {"text": "a b", "split": "test"}],
    "token id 99999 is not in the model's vocabulary": [{"text": [3, 99999]}],
    "the train split is empty": [{"text": "a b c d", "split": "test"}],
    "the row has no split while others have": [{"text": "a b c", "split": "train"}, {"text": "c d e"}],
    "no document has two tokens": [{"text": [3]}],
}


@pytest.mark.parametrize("message", REFUSALS)
def test_a_bad_corpus_is_refused_by_row(tmp_path, message):
    with pytest.raises(UserError, match="corpus.jsonl") as error:
        text_task(corpus(tmp_path, REFUSALS[message]))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set task.path to a corpus, or task.text.generate"),
        ({"task.path": "a.txt", "task.text.generate": 3}, "use one"),
        (
            {"task.path": "a.txt", "ablation.kind": "interchange"},
            "has no second prompt; set ablation.kind to zero or mean",
        ),
        ({"task.path": "a.txt", "ablation.prompts": "both", "ablation.kind": "mean"}, "ablation.prompts is set"),
        ({"task.path": "a.txt", "ablation.data": "ioi", "ablation.kind": "mean"}, "ablation.data is set"),
        ({"task.path": "a.txt", "train.hinge": 1}, "train.hinge is set"),
        ({"task.path": "a.txt", "population.members": [{"train.hinge": 1}]}, "train.hinge is set"),
        ({"task.path": "a.txt", "task.keep": "solved"}, "task.keep is set but task.name is text"),
        ({"task.path": "a.txt", "task.labels": "random"}, "task.labels is set but task.name is text"),
        ({"task.path": "a.txt", "task.columns": {"clean": "x"}}, "task.columns is set but task.name is text"),
        ({"task.path": "a.txt", "task.split.by": "template"}, "task.split.by is template"),
        ({"task.path": "a.txt", "task.text.window": 8, "task.text.stride": 9}, "lower the stride"),
        ({"task.name": "ioi", "task.text.window": 8}, "task.text.window is set but task.name is ioi"),
    ],
)
def test_settings_that_do_not_go_with_text_are_refused(settings, message):
    with pytest.raises(UserError) as error:
        load(None, {"task.name": "text", "ablation.kind": "zero", **settings})
    assert message in str(error.value)


def test_a_window_longer_than_the_model_is_refused():
    for settings in ({"task.path": "missing.jsonl"}, {"task.text.generate": 4}):
        with pytest.raises(UserError, match="task.text.window is 100000 but the model has"):
            text_task(settings.get("task.path"), **{"task.text.window": 100000, **settings})


def test_splits_count_windows_and_keep_documents_whole():
    examples = random_windows([20, 4, 4, 4, 4, 4], window=5)
    settings = {"train": 0.5, "validation": 0.0, "test": 0.5}
    found = split_windows(examples, [""] * 6, settings, 0)
    assert sorted(map(len, (found["train"], found["test"]))) == [4, 5]


def test_windows_are_collated_as_pairs_of_one_answer_would_be():
    windows = random_windows(stride=5)
    fast = collate(windows, full=False)
    slow = collate([example._replace(document=-1) for example in windows], full=False)
    for name, value in slow._asdict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(getattr(fast, name), value), name
    assert fast.logit_chunk and slow.logit_chunk is None
