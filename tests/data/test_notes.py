"""What is told of tokens before training: a count and the setting to change, and nothing where all is as it should be."""

import copy
import random

import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from bigcircuit.config.schema import ModelConfig, TaskConfig
from bigcircuit.data.builders import BUILDERS
from bigcircuit.data.dataset import load_task
from bigcircuit.data.notes import notes, with_leading_space
from bigcircuit.data.pair import Pair
from bigcircuit.data.tokenize import tokenize_pairs
from bigcircuit.model.load import load_config, load_tokenizer
from tests.helpers.pair_files import write_pairs

PEOPLE = (("Anna", "Emma"), ("Lucy", "Jane"), ("Rose", "Kate"))
ROWS = [
    {"clean": f"Then {a} met", "corrupted": f"Then {b} met", "answers": [f" {a}"], "wrong_answers": [f" {b}"]}
    for a, b in PEOPLE
]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelConfig())


def told(tmp_path, tokenizer, rows, **task):
    """The data of a pair file whose first pair is changed, and its notes."""
    path = write_pairs(tmp_path / "p.jsonl", rows)
    data = load_task(TaskConfig(name="pairs", path=path, **task), tokenizer, load_config(ModelConfig()))
    return data, [note.removeprefix(f"{path}: ").replace(path, "FILE") for note in data.notes]


def changed(**cells):
    return [{**ROWS[0], **cells}, *ROWS[1:]]


def test_pairs_as_they_should_be_are_not_remarked_on(tmp_path, tokenizer):
    assert told(tmp_path, tokenizer, ROWS)[1] == []


def test_a_size_that_a_pair_file_does_not_have_is_told(tmp_path, tokenizer):
    assert told(tmp_path, tokenizer, ROWS, size=3)[1] == []
    data, found = told(tmp_path, tokenizer, ROWS, size=2)
    assert sum(map(len, data.splits.values())) == 3
    assert found == ["all its 3 pairs are read; task.size, 2, is for tasks that are built"]


def test_a_space_on_both_sides_of_the_answer_is_told(tmp_path, tokenizer):
    _, found = told(tmp_path, tokenizer, changed(clean="Then Anna met ", corrupted="Then Emma met "))
    assert found == [
        "1 of 3 pairs have a space at the end of the prompt and another at the beginning of an answer; remove one of the two "
        "(the first: FILE:1)"
    ]


def test_a_second_beginning_is_told(tmp_path, tokenizer):
    rows = [{**row, "clean": f"<s>{row['clean']}", "corrupted": f"<s>{row['corrupted']}"} for row in ROWS]
    _, found = told(tmp_path, tokenizer, rows)
    assert found == [
        "3 of 3 pairs begin with '<s>', and the tokenizer adds it once more; set task.special_tokens to false, or leave it out "
        "of the texts (the first: FILE:1)"
    ]
    data, found = told(tmp_path, tokenizer, rows, special_tokens=False)
    assert found == []
    plain, _ = told(tmp_path, tokenizer, ROWS)
    assert {e.clean for part in data.splits.values() for e in part} == {
        e.clean for part in plain.splits.values() for e in part
    }


def test_an_end_token_of_the_text_is_kept_and_told(tmp_path, tokenizer):
    """Here, as in GPT-2, it is the token that texts begin with as well."""
    ending = copy.deepcopy(tokenizer)
    ending.eos_token = "<s>"
    assert told(tmp_path, ending, ROWS)[1] == []
    data, found = told(tmp_path, ending, changed(answers=["<s>"]))
    assert [e.answers for part in data.splits.values() for e in part if e.id == 0] == [((ending.eos_token_id,),)]
    assert found == [
        "1 of 3 pairs have the end token '<s>' in their texts, where it stays a token of the text; set task.path to a file "
        "without it if the model should not read or predict it (the first: FILE:1)"
    ]


def test_numbers_after_a_text_prompt_are_text_and_told(tmp_path, tokenizer):
    data, found = told(
        tmp_path,
        tokenizer,
        changed(clean="Then 2 + 3 = ", corrupted="Then 2 + 4 = ", answers=[5], wrong_answers=[6, 7]),
    )
    assert data.pairs[0].answers == ("5",)
    assert data.pairs[0].wrong_answers == ("6", "7")
    assert found == [
        "1 of 3 pairs have answers that are numbers after a text prompt, which are read as text; "
        'write "5" in FILE to say so, or [[5]] where 5 is a token id (the first: FILE:1)'
    ]
    data, found = told(tmp_path, tokenizer, changed(answers=[[5]], wrong_answers=[[6], [7]]))
    assert data.pairs[0].wrong_answers == ((6,), (7,))
    assert found == []


def test_a_missing_space_is_told_and_can_be_added(tmp_path, tokenizer):
    rows = [{**row, "answers": [row["answers"][0][1:]], "wrong_answers": [row["wrong_answers"][0][1:]]} for row in ROWS]
    _, found = told(tmp_path, tokenizer, rows)
    assert found == [
        "3 of 3 pairs have an answer without a space before it, though the prompt ends with a whole word; set "
        "task.leading_space to add, or begin the answers with a space (the first: FILE:1)"
    ]
    data, found = told(tmp_path, tokenizer, rows, leading_space="add")
    plain, _ = told(tmp_path, tokenizer, ROWS)
    assert (data.splits, found) == (plain.splits, [])


LETTERS = {letter: place for place, letter in enumerate("?ATEehnmtaluc ")}
WORDS = {word: place for place, word in enumerate(("?", "Then", " met", " Anna", " Emma"))}


without_all_tokens = pytest.mark.parametrize(
    ("model", "lost"),
    [
        (tokenizers.models.BPE(LETTERS, []), "ü"),  # left out without a word
        (tokenizers.models.BPE(LETTERS, [], unk_token="?"), "?"),
        (tokenizers.models.WordLevel(WORDS, unk_token="?"), "?"),  # of which every lone letter is unknown
    ],
)


def of_few_tokens(model, lost):
    fast = tokenizers.Tokenizer(model)
    fast.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "merged_with_next")
    return PreTrainedTokenizerFast(tokenizer_object=fast, unk_token="?" if lost == "?" else None)


@without_all_tokens
def test_text_without_tokens_is_told(model, lost):
    tokenizer = of_few_tokens(model, lost)
    rows = [("Then Anna met", " Anna"), ("Thün Anna met", " Anna"), ("Then Anna met", " Anün")]
    pairs = [
        Pair(clean=a, corrupted=a.replace("Anna", "Emma"), answers=(b,), wrong_answers=(" Emma",), source=f"FILE:{i}")
        for i, (a, b) in enumerate(rows)
    ]
    found = notes(TaskConfig(), pairs, tokenize_pairs(pairs, tokenizer, 100), tokenizer)
    assert found == [
        f"ioi: 2 of 3 pairs have text without tokens, such as {lost!r}, which is left out or read as unknown; reword it "
        "(the first: FILE:1)"
    ]
    assert notes(TaskConfig(), pairs[:1], tokenize_pairs(pairs[:1], tokenizer, 100), tokenizer) == []


def told_of_corpus(tmp_path, tokenizer, texts):
    """The notes on a corpus of these documents."""
    path = write_pairs(tmp_path / "corpus.jsonl", [{"text": text} for text in texts])
    config = load_config(ModelConfig())
    data = load_task(TaskConfig(name="text", path=path, text={"window": 16}), tokenizer, config)
    return [note.removeprefix(f"{path}: ").replace(path, "FILE") for note in data.notes]


@without_all_tokens
def test_documents_without_tokens_are_told(tmp_path, model, lost):
    tokenizer, texts = of_few_tokens(model, lost), ["Then Anna met", "Thün Anna met", " Emma met Anün", [1, 2, 3]]
    assert told_of_corpus(tmp_path, tokenizer, texts) == [
        f"2 of 4 documents have text without tokens, such as {lost!r}, which is left out or read as unknown; reword it "
        "(the first: FILE:2)"
    ]
    assert told_of_corpus(tmp_path, tokenizer, [texts[0], texts[0] + " Emma", texts[3]]) == []


def test_special_tokens_in_documents_are_told(tmp_path, tokenizer):
    """The embedded tokenizer begins a text with <s>; an end token that it adds itself is none of the text."""
    ending = copy.deepcopy(tokenizer)
    ending.eos_token = "Then"
    ending.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A Then", special_tokens=[("<s>", tokenizer.bos_token_id), ("Then", ending.eos_token_id)]
    )
    texts = ["Anna met Emma", "<s>Emma met", "Anna met Then"]
    assert told_of_corpus(tmp_path, ending, texts) == [
        "1 of 3 documents begin with '<s>', and the tokenizer adds it once more; set task.special_tokens to false, or leave it "
        "out of the texts (the first: FILE:2)",
        "1 of 3 documents have the end token 'Then' in their texts, where it stays a token of the text; set task.path to a file "
        "without it if the model should not read or predict it (the first: FILE:3)",
    ]
    assert told_of_corpus(tmp_path, ending, ["Anna met Emma", "Emma met", "Anna met"]) == []


@pytest.mark.parametrize(
    ("prompt", "right", "wrong"),
    [
        ("Anna the year 13", "53", "15"),
        ("Anna print(", "one", "two"),
        ("Anna said ", "one", "two"),
        ("Anna new_", "one", "two"),
        ("Anna met Emma", "'s", "."),
        ("Anna 那是", "中", "国"),
    ],
)
def test_continuations_of_a_word_or_of_a_text_without_spaces_are_no_words_without_a_space(
    tokenizer, prompt, right, wrong
):
    pair = Pair(clean=prompt, corrupted=prompt.replace("Anna", "Jane"), answers=(right,), wrong_answers=(wrong,))
    examples = tokenize_pairs([pair], tokenizer, 64)
    assert notes(TaskConfig(), [pair], examples, tokenizer) == []
    assert with_leading_space(pair) == pair


@pytest.mark.parametrize("name", [name for name in BUILDERS if name != "docstring"])
def test_builders_make_pairs_that_need_no_notes(tokenizer, name):
    pairs = BUILDERS[name](tokenizer, 20, random.Random(0))
    assert notes(TaskConfig(name=name), pairs, tokenize_pairs(pairs, tokenizer, 128), tokenizer) == []
