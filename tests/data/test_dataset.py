"""Bad pair files. Each is one mistake of a user, and must be one line that names the file, the row, and what to do."""

import io
import json
import time
from typing import Any, NamedTuple

import pyarrow
import pytest
from datasets import Dataset
from pyarrow import parquet

from bigcircuit.cli import answer, run_check
from bigcircuit.config.schema import ModelConfig, TaskConfig
from bigcircuit.data.dataset import load_task
from bigcircuit.data.readers.read import read_pairs
from bigcircuit.errors import UserError
from bigcircuit.model.load import load_config, load_tokenizer
from tests.helpers.launch import option_words

GOOD = {"clean": "Then Anna met", "corrupted": "Then Emma met", "answers": [" Anna"], "wrong_answers": [" Emma"]}
OTHER = {"clean": "Then Lucy met", "corrupted": "Then Jane met", "answers": [" Lucy"], "wrong_answers": [" Jane"]}
IDS = {"clean": [1, 2], "corrupted": [3, 2], "answers": [4], "wrong_answers": [5]}
HEADER = "clean,corrupted,answers,wrong_answers\n"
PRONOUN = {"prefix": "Al is, isn't", "corr_prefix": "Di is, isn't", "pronoun": "he", "corr_pronoun": "she"}
CHOICE = {"prompt": "Answer:", "choices": {"label": ["A", "B"]}, "answerKey": 0, "x_counterfactual": {"prompt": "Say:"}}


class Bad(NamedTuple):
    """A file and what its error must say."""

    file: str
    content: Any
    """Bytes, text, or rows: a list for JSONL, a list with the ending .parquet or no ending for those containers."""
    place: str
    """What directly follows the file's name: the row, or nothing."""
    says: tuple[str, ...]
    """The mistake and the remedy."""
    task: dict = {}


def lines(*rows):
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)


def second(**changes):
    """A good row, and one with changed cells; None takes a cell away."""
    return lines(GOOD, {k: v for k, v in {**OTHER, **changes}.items() if v is not None})


def parquet_bytes(**columns):
    file = io.BytesIO()
    parquet.write_table(
        pyarrow.table({**dict.fromkeys(HEADER.strip().split(","), pyarrow.array(["a", "b"])), **columns}), file
    )
    return file.getvalue()


LATIN = pyarrow.Array.from_buffers(pyarrow.string(), 2, pyarrow.array([b"Anna", b"caf\xe9"]).buffers())
"""Texts of which the second is not UTF-8; pyarrow takes the bytes as they come and finds out when a text is made of them."""
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n"
CONTAINERS = {
    "latin-1 in parquet": Bad(
        "a.parquet", parquet_bytes(clean=LATIN), " row 1:", ("a cell cannot be read", "0xe9", "text must be UTF-8")
    ),
    "date out of range": Bad(
        "a.parquet",
        parquet_bytes(when=pyarrow.array([0, 2**61], pyarrow.timestamp("us"))),
        " row 1:",
        ("a cell cannot be read", "date", "years 1 and 9999", "leave the column out"),
    ),
    "millions of rows": Bad(
        "a.parquet",
        parquet_bytes(**dict.fromkeys(HEADER.strip().split(","), pyarrow.nulls(250_001, pyarrow.string()))),
        ":",
        ("more than 250,000 rows", "keep some thousands"),
    ),
    "gigabytes of text": Bad(
        "a.parquet",
        parquet_bytes(**dict.fromkeys(HEADER.strip().split(","), pyarrow.array(["x" * 2**20]).take([0] * 70))),
        ":",
        ("more than", "268,435,456 characters", "keep some thousands"),
    ),
    "pointer of git-lfs": Bad("a.jsonl", POINTER, ":", ("is a pointer of git-lfs", "git lfs pull")),
    "pointer to parquet": Bad("a.parquet", POINTER, ":", ("is a pointer of git-lfs", "git lfs pull")),
    "too many cells between semicolons": Bad(
        "a.csv",
        HEADER.replace(",", ";") + "a;b;c;d\nWell; a;b;c;d\n",
        ":3:",
        ("has 5 cells and the header 4", "quotes around cells that hold semicolons"),
    ),
    "empty": Bad("a.jsonl", "", ":", ("has no rows", "write at least two pairs")),
    "only blank lines": Bad("a.jsonl", "\n \n\n", ":", ("has no rows", "at least two pairs")),
    "only a header": Bad("a.csv", HEADER, ":", ("has no rows", "at least two pairs")),
    "empty csv": Bad("a.csv", "", ":", ("has no rows",)),
    "empty list": Bad("a.json", "[]", ":", ("has no rows",)),
    "no ending": Bad("pairs", "x", ":", ("file without ending", ".jsonl, .json, .csv, .parquet")),
    "wrong ending": Bad(
        "a.txt", lines(GOOD), ":", ("cannot read the ending .txt", "use .jsonl, .json, .csv, .parquet")
    ),
    "broken json": Bad("a.jsonl", lines(GOOD, '{"clean": "x",'), ":2:", ("not valid JSON", "one object a line")),
    "a list a line": Bad("a.jsonl", lines(GOOD, "", [1, 2]), ":3:", ("is a list, not an object", "one object a line")),
    "pretty json as lines": Bad(
        "a.jsonl", json.dumps([GOOD], indent=1), ":1:", ("not valid JSON", "one object a line")
    ),
    "lines as json": Bad("a.json", lines(GOOD, OTHER), ":2:", ("not valid JSON", "use the ending .jsonl")),
    "json without prompts": Bad("a.json", '{"pairs": []}', ":", ('without a list "prompts"', ".jsonl")),
    "json of texts": Bad("a.json", '{"prompts": ["x"]}', " row 0:", ("is a text, not an object", "list of objects")),
    "key twice": Bad(
        "a.jsonl", lines(GOOD, '{"clean": "a", ' + json.dumps(OTHER)[1:]), ":2:", ("the key 'clean' more than once",)
    ),
    "key twice in a list": Bad(
        "a.json", '[{"clean": "a", ' + json.dumps(OTHER)[1:] + "]", ":", ("the key 'clean' more than once",)
    ),
    "deep json": Bad("a.jsonl", lines(GOOD, "[" * 100_000), ":2:", ("not valid JSON", "one object a line")),
    "latin-1": Bad(
        "a.jsonl",
        lines(GOOD).encode() + b'{"clean": "caf\xe9"}\n',
        ":2:",
        ("not UTF-8 (byte 0xe9)", "save the file as"),
    ),
    "utf-16": Bad("a.csv", (HEADER + "a,b,c,d\n").encode("utf-16"), ":1:", ("not UTF-8", "save the file as UTF-8")),
    "too many cells": Bad(
        "a.csv", HEADER + "a,b,c,d\nWell, a,b,c,d\n", ":3:", ("has 5 cells and the header 4", "quotes around")
    ),
    "too few cells": Bad(
        "a.csv", HEADER + '"x\ny",b,c,d\na,b,c\n', ":4:", ("has 3 cells and the header 4", "quotes around")
    ),
    "open quote": Bad("a.csv", HEADER + 'a,b,c,d\n"a,b,c,d\n', ":3:", ("not valid CSV", "close every quote")),
    "column twice": Bad("a.csv", "clean,clean\na,b\n", ":1:", ("column 'clean' more than once", "rename one")),
    "no parquet": Bad("a.parquet", "hello", ":", ("not a whole Parquet file", "write it again")),
    "cut parquet": Bad(
        "a.parquet", b"PAR1" + b"\0" * 40 + b"PAR1", ":", ("not a whole Parquet file", "write it again")
    ),
}

COLUMNS = {
    "misspelt column": Bad(
        "a.jsonl",
        lines({"clean": "a", "corrupt": "b", "answer": "c", "wrong_answers": "d"}),
        ":",
        ("no columns corrupted, answers", "it has clean, corrupt, answer", "set task.columns.corrupted=corrupt"),
    ),
    "other columns": Bad("a.csv", "x,y\n1,2\n", ":", ("no columns clean, corrupted", "it has x, y", "task.columns")),
    "nothing marked": Bad(
        "a.jsonl", lines({"clean": "a", "corrupted": "b"}), ":", ("no columns answers, wrong_answers", "task.columns")
    ),
    "column only above": Bad(
        "a.jsonl", second(answers=None), ":2:", ("no column answers", "fill it in", "task.columns")
    ),
    "renamed from nowhere": Bad(
        "a.jsonl", lines(GOOD), ":1:", ("no column promt", "task.columns.clean names"), {"columns": {"clean": "promt"}}
    ),
    "renamed to nowhere": Bad(
        "a.jsonl",
        lines(GOOD),
        "",
        ("task.columns.wrong", "no format has a column wrong", "nearest: wrong_answers"),
        {"columns": {"wrong": "clean"}},
    ),
    "unknown format": Bad(
        "a.jsonl",
        lines(GOOD),
        "",
        ("task.format 'eapig' is unknown", "nearest: eap-ig", "auto-circuit"),
        {"format": "eapig"},
    ),
    "wrong format": Bad(
        "a.jsonl",
        lines(GOOD),
        ":1:",
        ("no column correct_idx", "it has clean, corrupted", "task.columns"),
        {"format": "eap-ig"},
    ),
}

CELLS = {
    "number for a prompt": Bad(
        "a.jsonl", second(clean=5), ":2:", ("clean must be text or a list of token ids, not 5",)
    ),
    "null prompt": Bad("a.jsonl", lines(GOOD, {**OTHER, "clean": None}), ":2:", ("clean must be text", "not None")),
    "fractions for ids": Bad("a.jsonl", second(clean=[1.5, 2]), ":2:", ("clean must be", "list of token ids")),
    "truth for ids": Bad(
        "a.jsonl", second(answers=[True]), ":2:", ("answers must be", "list of token ids, not [True]")
    ),
    "no answers": Bad("a.jsonl", second(answers=[]), ":2:", ("answers is an empty list", "at least one answer")),
    "no wrong answers": Bad(
        "a.jsonl", second(wrong_answers=[]), ":2:", ("wrong_answers is an empty list", "at least one")
    ),
    "mixed answers": Bad(
        "a.jsonl", second(answers=[" a", 5]), ":2:", ("answers must be text, a list of texts or a list",)
    ),
    "half a character": Bad(
        "a.jsonl", second(clean="\ud83d x"), ":2:", ("clean holds half a character", "write it as UTF-8")
    ),
    "unknown split": Bad("a.jsonl", second(split="dev"), ":2:", ("split is 'dev'", "use train, validation, test or")),
    "text for an id": Bad(
        "a.csv",
        "clean,corrupted,correct_idx,incorrect_idx\na,b,5,6\na,b, Anna,7\n",
        ":3:",
        ("correct_idx must be a token id", "' Anna'"),
    ),
    "no year": Bad("a.csv", "clean,corrupted,label\na,b,1752\n", ":2:", ("label must be the two digits", "'1752'")),
    "last year": Bad("a.csv", "clean,corrupted,label\na,b,52\na,b,99\n", ":3:", ("label is 99", "remove the row")),
    "nothing to predict": Bad(
        "a.jsonl",
        lines({"clean": "I see <predict>a</predict>", "corrupted": "You see b"}),
        ":1:",
        ("corrupted must hold <predict>target</predict> once", "mark the target"),
    ),
    "no end of the target": Bad(
        "a.jsonl",
        lines({"clean": "I <predict>" * 100_000, "corrupted": "You see <predict>b</predict>"}),
        ":1:",
        ("clean must hold <predict>target</predict> once", "mark the target"),
    ),
    "another name at the end": Bad(
        "a.jsonl",
        lines({"a": "Al", "b": "Bo", "ioi_sentences": "Al, Bo. Bo met Cy", "corr_ioi_sentences": "Di met Ed"}),
        ":1:",
        ("ioi_sentences must end with a, 'Al'", "'Cy'"),
    ),
    "no pronoun": Bad("a.jsonl", lines({**PRONOUN, "pronoun": 1}), ":1:", ("pronoun must be text, not 1",)),
    "key beyond the choices": Bad("a.jsonl", lines({**CHOICE, "answerKey": 2}), ":1:", ("answerKey is 2", "2 choices")),
    "choices without labels": Bad(
        "a.jsonl", lines({**CHOICE, "choices": ["A"]}), ":1:", ("choices must be an object",)
    ),
    "parquet type": Bad("a.parquet", [GOOD, {**OTHER, "clean": None}], " row 1:", ("clean must be text", "not None")),
    "folder type": Bad(
        "saved", [GOOD, {**OTHER, "answers": []}], " row 1:", ("answers is an empty list", "at least one")
    ),
}

TOKENS = {
    "empty prompt": Bad("a.jsonl", second(clean=""), ":2:", ("the clean prompt is empty", "fill it in")),
    "empty corrupted prompt": Bad(
        "a.csv", HEADER + "Anna met,,x,y\n", ":2:", ("the corrupted prompt is empty", "fill it in")
    ),
    "empty answer": Bad("a.jsonl", second(answers=[" Lucy", ""]), ":2:", ("an answer is empty", "at least one answer")),
    "same prompts": Bad(
        "a.jsonl", second(corrupted="Then Lucy met"), ":2:", ("clean and corrupted prompt are the same", "change")
    ),
    "unequal length": Bad(
        "a.jsonl",
        second(corrupted="Then Jane and Anna met"),
        ":2:",
        ("clean has 6 tokens and corrupted 8", "equal token length"),
    ),
    "different boundary": Bad(
        "a.jsonl",
        second(clean="Then s", corrupted="Then t", answers=["hey"], wrong_answers=["here"]),
        ":2:",
        ("an answer is tokenised differently after clean and after corrupted", "reword the end"),
    ),
    "right and wrong": Bad(
        "a.jsonl", second(wrong_answers=[" x", " Lucy"]), ":2:", ("both an answer and a wrong", "remove it")
    ),
    "same scored tokens": Bad(
        "a.jsonl",
        second(answers=[" Anna met"], wrong_answers=[" Anna"]),
        ":2:",
        ("share all scored tokens", "make them differ"),
    ),
    "too long": Bad(
        "a.jsonl", second(clean="Anna " * 130, corrupted="Emma " * 130), ":2:", ("more than 128", "task.max_tokens")
    ),
    "too long for the setting": Bad(
        "a.jsonl", lines(GOOD), ":1:", ("6 tokens with the answer, more than 4", "shorten it"), {"max_tokens": 4}
    ),
    "twice": Bad("a.jsonl", lines(GOOD, OTHER, GOOD), ":3:", ("the same pair as", "a.jsonl:1", "remove one")),
    "foreign ids": Bad(
        "a.csv",
        "clean,corrupted,correct_idx,incorrect_idx\nThen Anna met,Then Emma met,47764,26757\n",
        ":2:",
        ("token id 47764 is outside the model's vocabulary of 1030", "another tokenizer"),
    ),
    "negative id": Bad(
        "a.jsonl", lines({**IDS, "clean": [-1, 2]}), ":1:", ("token id -1 is outside", "another tokenizer")
    ),
    "thousands of beginnings": Bad(
        "a.jsonl",
        lines(
            {**IDS, "answers": [[7 + n, 1] for n in range(500)], "wrong_answers": [[n + 510, 1] for n in range(500)]}
        ),
        ":1:",
        ("answers have 1,000 different beginnings, more than 256", "give fewer answers"),
    ),
    "ids and text": Bad(
        "a.jsonl", lines({**IDS, "answers": " Anna"}), ":1:", ("token ids but the answer ' Anna' is text", "same way")
    ),
    "prompt in two splits": Bad(
        "a.jsonl",
        lines({**GOOD, "split": "train"}, {**OTHER, "split": "test", "corrupted": GOOD["clean"]}),
        ":2:",
        ("its prompt is in split test and, at", "a.jsonl:1, in split train", "remove one"),
    ),
    "split for some": Bad(
        "a.jsonl", lines({**GOOD, "split": "train"}, OTHER), ":2:", ("no split while others have", "fill in")
    ),
    "one pair": Bad("a.jsonl", lines(GOOD), ":", ("the train split is empty", "add pairs or change task.split")),
    "one pair in parquet": Bad("a.parquet", [GOOD], ":", ("the train split is empty", "add pairs")),
    "all connected": Bad(
        "a.jsonl", second(corrupted=GOOD["corrupted"]), ":", ("1 groups that share prompts", "add pairs")
    ),
    "no test rows": Bad(
        "a.jsonl",
        lines(*({**row, "split": "train"} for row in (GOOD, OTHER))),
        ":",
        ("the test split is empty", "add pairs"),
    ),
}

CASES = {**CONTAINERS, **COLUMNS, **CELLS, **TOKENS}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(ModelConfig())


@pytest.fixture(scope="module")
def hf_config():
    return load_config(ModelConfig())


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8", newline="")
    elif path.suffix == ".parquet":
        Dataset.from_list(content).to_parquet(path)
    else:
        Dataset.from_list(content).save_to_disk(path)


def message(task: dict, tokenizer, hf_config) -> str:
    with pytest.raises(UserError) as caught:
        load_task(TaskConfig(name="pairs", **task), tokenizer, hf_config)
    text = str(caught.value)
    assert text.isprintable(), "one line, and nothing that a terminal would act on"
    return text


@pytest.mark.parametrize("name", CASES)
def test_bad_file(tmp_path, tokenizer, hf_config, name):
    bad = CASES[name]
    path = tmp_path / bad.file
    write(path, bad.content)
    text = message({"path": str(path), **bad.task}, tokenizer, hf_config)
    if bad.place:
        assert text.startswith(f"{path}{bad.place} "), text
    for words in bad.says:
        assert words in text, text


@pytest.mark.parametrize("name", CASES)
def test_bad_file_as_a_user_meets_it(tmp_path, name, capsys):
    bad = CASES[name]
    path = tmp_path / bad.file
    write(path, bad.content)
    capsys.readouterr()  # what writing the file printed
    words = [
        "--task.name=pairs",
        f"--task.path={path}",
        *option_words({f"task.{key}": value for key, value in bad.task.items()}),
    ]
    start = time.process_time()
    assert answer(run_check, words) == 2
    assert time.process_time() - start < 3
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", {**COLUMNS, **CELLS})
def test_what_the_reader_can_know_is_refused_by_the_reader(tmp_path, name):
    """Before a tokenizer is looked for."""
    bad = CASES[name]
    write(tmp_path / bad.file, bad.content)
    with pytest.raises(UserError):
        read_pairs(str(tmp_path / bad.file), bad.task.get("format"), bad.task.get("columns"))


def test_the_good_rows_are_good(tmp_path, tokenizer, hf_config):
    """Or the cases above would fail for another reason."""
    write(tmp_path / "a.jsonl", lines(GOOD, OTHER))
    data = load_task(TaskConfig(name="pairs", path=str(tmp_path / "a.jsonl")), tokenizer, hf_config)
    assert sum(map(len, data.splits.values())) == 2
    write(tmp_path / "b.jsonl", lines(IDS, {**IDS, "clean": [7, 8], "corrupted": [8, 7]}))
    data = load_task(TaskConfig(name="pairs", path=str(tmp_path / "b.jsonl")), None, hf_config)
    assert sum(map(len, data.splits.values())) == 2


def test_missing_file(tmp_path, tokenizer, hf_config):
    path = str(tmp_path / "none.jsonl")
    assert message({"path": path}, tokenizer, hf_config) == f"{path}: no such file; set task.path to a pair file"


def test_folder_that_is_no_dataset(tmp_path, tokenizer, hf_config):
    text = message({"path": str(tmp_path)}, tokenizer, hf_config)
    assert text.startswith(f"{tmp_path}: is a folder that datasets cannot open")
    assert "set task.path to a pair file or to a folder saved by save_to_disk" in text


@pytest.mark.parametrize("damage", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_damaged_saved_dataset(tmp_path, tokenizer, hf_config, damage):
    folder = tmp_path / "saved"
    write(folder, [GOOD, OTHER])
    (folder / damage).write_text("{")
    assert "folder that datasets cannot open" in message({"path": str(folder)}, tokenizer, hf_config)


@pytest.mark.parametrize("path", ["hf://pairs", "hf://", "hf://a/b/c/d"])
def test_bad_hub_name(path, tokenizer, hf_config):
    text = message({"path": path}, tokenizer, hf_config)
    assert text.startswith(f"{path}: not a name on the hub; write hf://org/name")


def test_hub_out_of_reach(tokenizer, hf_config):
    """The tests run offline, so that no data set is within reach."""
    text = message({"path": "hf://nobody/no-such-pairs"}, tokenizer, hf_config)
    assert text.startswith("hf://nobody/no-such-pairs: cannot be opened (")
    assert "check the name and the connection" in text


def test_text_for_a_model_without_tokenizer(tmp_path, hf_config):
    write(tmp_path / "a.jsonl", lines(GOOD, OTHER))
    text = message({"path": str(tmp_path / "a.jsonl")}, None, hf_config)
    assert text == f"{tmp_path}/a.jsonl:1: the row is text but the model has no tokenizer; write token ids instead"


def test_strange_column_names_stay_on_one_line(tmp_path, tokenizer, hf_config):
    write(tmp_path / "a.csv", '"cl\nean",\x1b[31mred\n1,2\n')
    assert "no columns clean, corrupted" in message({"path": str(tmp_path / "a.csv")}, tokenizer, hf_config)


def test_ids_of_another_tokenizer_in_a_real_file(shared, gpt2_tokenizer):
    """The EAP-IG file for indirect objects was made for a vocabulary larger than GPT-2's."""
    from bigcircuit.data.tokenize import tokenize_pairs

    path = str(shared / "data/formats/eap_ig_ioi.csv")
    with pytest.raises(UserError, match=r"eap_ig_ioi.csv:\d+: token id \d+ is outside the model's vocabulary of 50257"):
        tokenize_pairs(read_pairs(path), gpt2_tokenizer, 64, vocab_size=50257)
