"""A pair shown as tokens: clean above corrupted, marks below what differs, on any width and for any tokenizer."""

import io

import pytest
from rich.cells import cell_len

from bigcircuit.check import check_config
from bigcircuit.config.load import load
from bigcircuit.config.schema import ModelConfig
from bigcircuit.data.pair import Example, Pair
from bigcircuit.data.shown_tokens import token_lines, token_texts
from bigcircuit.data.tokenize import tokenize_pairs
from bigcircuit.model.load import load_tokenizer
from bigcircuit.runtime.console import PlainConsole
from tests.helpers.pair_files import write_pairs


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelConfig())


def shown(tokenizer, clean, corrupted, answers, wrong, width=80):
    pair = Pair(clean=clean, corrupted=corrupted, answers=answers, wrong_answers=wrong)
    return list(token_lines(tokenize_pairs([pair], tokenizer, 64)[0], tokenizer, width))


def test_clean_stands_above_corrupted_and_what_differs_is_marked(tokenizer):
    assert shown(tokenizer, "Then Anna gave", "Then Tom gave", (" Anna", " Kate Rose"), (" Tom",)) == [
        "  clean          |<s>|Then| Anna| gave|",
        "  corrupted      |<s>|Then| Tom | gave|",
        "                           ^^^^^",
        "  answers        | Anna|, | Kate| Rose|",
        "  wrong answers  | Tom|",
    ]


def test_token_ids_without_a_tokenizer():
    wrong = tuple((7 + n,) for n in range(6))
    example = Example(id=0, clean=(1, 20, 3), corrupted=(1, 4, 3), answers=((5, 6),), wrong_answers=wrong, source="f:1")
    assert list(token_lines(example, None, 80)) == [
        "  clean          |1|20|3|",
        "  corrupted      |1|4 |3|",
        "                    ^^",
        "  answers        |5|6|",
        "  wrong answers  |7|, |8|, |9|, |10|, and 2 more",
    ]


def test_a_window_is_its_context_and_what_is_scored(tokenizer):
    ids = tuple(tokenizer("Then Anna gave Kate Rose", add_special_tokens=True)["input_ids"])
    window = Example(
        id=0, clean=ids[:2], corrupted=ids[:2], answers=(ids[2:],), wrong_answers=(), source="f", document=0
    )
    assert list(token_lines(window, tokenizer, 80)) == [
        "  context        |<s>|Then|",
        "  scored         | Anna| gave| Kate| Rose|",
    ]
    long = window._replace(answers=(tuple(range(100, 200)),))
    assert list(token_lines(long, None, 60))[1:] == [
        "  scored         |100|101|102|103|104|105|106|107|108|109|",
        "  scored         |110|111|112|113|114|115|116|117|118|119|",
        "  scored         |... 60 tokens ...|180|181|182|183|184|185|",
        "  scored         |186|187|188|189|190|191|192|193|194|195|",
        "  scored         |196|197|198|199|",
    ]


def test_check_of_a_corpus_speaks_of_windows_and_tells_its_notes(tmp_path):
    path = write_pairs(tmp_path / "c.jsonl", [{"text": f"{name} met"} for name in ("<s>Anna", "Emma", "Lucy", "Jane")])
    config = load(
        None,
        {"task.name": "text", "task.path": path, "task.text.window": 8, "ablation.kind": "zero"}
        | {"output": str(tmp_path / "run"), "target.total": 100},
    )
    console = PlainConsole(file=io.StringIO(), width=200)
    check_config(config, console)
    text = console.file.getvalue()
    assert f"note: {path}: 1 of 4 documents begin with '<s>'" in text
    assert "windows of text" in text and "  scored " in text
    assert not any(word in text for word in ("pairs", "corrupted", "wrong answers", "differ"))


def test_a_long_prompt_is_broken_between_tokens(tokenizer):
    lines = shown(tokenizer, "Then Anna gave" * 6, "Then Tom gave" * 6, (" Anna",), (" Tom",), width=40)
    prompts = lines[:-2]
    assert max(map(len, lines)) <= 40
    assert len(prompts) > 6
    pieces = [line.split("|")[1:-1] for line in prompts if line.startswith("  clean")]
    assert "".join(piece for part in pieces for piece in part) == "<s>" + "Then Anna gave" * 6


def test_what_a_terminal_does_not_print_or_prints_wide_is_shown_in_its_place(tokenizer):
    lines = shown(tokenizer, "Anna\n日é\x1b[31m met", "Jane\n日é\x1b[31m met", (" Anna",), (" Jane",))
    assert all(line.isprintable() for line in lines)
    assert cell_len(lines[0]) == cell_len(lines[1])
    assert "\\n" in lines[0]


def test_check_shows_a_pair_of_each_split_and_the_notes_and_reads_no_markup_in_them(tmp_path):
    """A prompt of an instruction-tuned model looks like a closing tag of a terminal's markup."""
    names = (("Anna", "Emma"), ("Lucy", "Jane"), ("Rose", "Kate"))
    rows = [
        {"clean": f"[/INST] [b] {a} met", "corrupted": f"[/INST] [b] {b} met", "answers": [a], "wrong_answers": [b]}
        | {"split": split}
        for (a, b), split in zip(names, ("train", "validation", "test"), strict=True)
    ]
    path = write_pairs(tmp_path / "p.jsonl", rows)
    config = load(None, {"task.name": "pairs", "task.path": path, "output": str(tmp_path / "run"), "target.total": 100})
    console = PlainConsole(file=io.StringIO(), width=200)
    check_config(config, console)
    text = console.file.getvalue()
    for split in ("train", "validation", "test"):
        assert f"\n{split}: {path}:" in text
    for name in ("Anna", "Emma", "Lucy", "Jane", "Rose", "Kate"):
        assert f"| {name}" in text
    assert "[/INST] [b] Anna met" in text
    assert f"note: {path}: 3 of 3 pairs have an answer without a space" in text


def test_an_id_that_only_the_model_has_is_shown_as_a_number():
    """Models have vocabularies that are padded to a round number."""
    tokenizer = load_tokenizer(ModelConfig())
    assert token_texts(tokenizer, (), (len(tokenizer) + 3,)) == [f"[{len(tokenizer) + 3}]"]
