"""Every pair format, from small files written here and, where they are at hand, from the real ones."""

import csv
import json

import pyarrow
import pytest
from datasets import Dataset, DatasetDict
from pyarrow import parquet

from bigcircuit.data.pair import Message, Pair
from bigcircuit.data.readers.formats import FORMATS, PairFormat
from bigcircuit.data.readers.read import read_pairs
from bigcircuit.data.tokenize import tokenize_pairs
from bigcircuit.errors import UserError

ROWS = [
    {"clean": "Ann and Bo. Bo saw", "corrupted": "Ann and Bo. Cy saw", "answers": [" Ann"], "wrong_answers": [" Bo"]},
    {
        "clean": "Di and Ed. Ed saw",
        "corrupted": "Di and Ed. Cy saw",
        "answers": [" Di", " D"],
        "wrong_answers": [" Ed"],
    },
]
PAIRS = [
    Pair(clean="Ann and Bo. Bo saw", corrupted="Ann and Bo. Cy saw", answers=(" Ann",), wrong_answers=(" Bo",)),
    Pair(clean="Di and Ed. Ed saw", corrupted="Di and Ed. Cy saw", answers=(" Di", " D"), wrong_answers=(" Ed",)),
]


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_csv(path, rows):
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    return str(path)


def write_parquet(path, rows):
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)


def write_json(path, rows):
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def write_folder(path, rows):
    Dataset.from_list(rows).save_to_disk(path)
    return str(path)


def without_source(pairs):
    return [pair._replace(source="") for pair in pairs]


WRITERS = {
    "jsonl": (write_jsonl, ":1", ":2"),
    "csv": (write_csv, ":2", ":3"),
    "json": (write_json, " row 0", " row 1"),
    "parquet": (write_parquet, " row 0", " row 1"),
    "folder": (write_folder, " row 0", " row 1"),
}


@pytest.mark.parametrize("ending", WRITERS)
def test_canonical_pairs_from_every_container(tmp_path, ending):
    write, first, second = WRITERS[ending]
    path = write(tmp_path / f"pairs.{ending}", ROWS)
    pairs = read_pairs(path)
    assert without_source(pairs) == PAIRS
    assert [pair.source for pair in pairs] == [path + first, path + second]


@pytest.mark.parametrize("ending", WRITERS)
def test_split_column(tmp_path, ending):
    rows = [{**row, "split": split} for row, split in zip(ROWS, ("train", "test"), strict=True)]
    pairs = read_pairs(WRITERS[ending][0](tmp_path / f"pairs.{ending}", rows))
    assert [pair.split for pair in pairs] == ["train", "test"]


@pytest.mark.parametrize("name", ["Split", "splits", "split "])
def test_a_column_that_is_almost_called_split_is_not_passed_over(tmp_path, name):
    path = write_csv(tmp_path / "p.csv", [{**row, name: "test"} for row in ROWS])
    with pytest.raises(UserError, match=rf"p\.csv:2: column '{name}' has splits, and only a column split is read"):
        read_pairs(path)
    assert [pair.split for pair in read_pairs(path, columns={"split": name})] == ["test", "test"]
    path = write_csv(tmp_path / "q.csv", [{**row, name: "a"} for row in ROWS])
    assert [pair.split for pair in read_pairs(path)] == ["", ""]


@pytest.mark.parametrize("ending", WRITERS)
def test_token_ids(tmp_path, ending):
    """A flat list of numbers is one answer; a list of lists is several."""
    rows = [{"clean": [1, 2, 3], "corrupted": [1, 9, 3], "answers": [[5], [6, 7]], "wrong_answers": [[8]]}]
    path = WRITERS[ending][0](tmp_path / f"ids.{ending}", rows)
    assert without_source(read_pairs(path)) == [
        Pair(clean=(1, 2, 3), corrupted=(1, 9, 3), answers=((5,), (6, 7)), wrong_answers=((8,),))
    ]
    flat = [{"clean": [1, 2, 3], "corrupted": [1, 9, 3], "answers": [5], "wrong_answers": [8, 4]}]
    path = WRITERS[ending][0](tmp_path / f"flat.{ending}", flat)
    assert without_source(read_pairs(path)) == [
        Pair(clean=(1, 2, 3), corrupted=(1, 9, 3), answers=((5,),), wrong_answers=((8, 4),))
    ]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_a_csv_file_may_have_semicolons_or_tabs_between_its_cells(tmp_path, mark):
    path = tmp_path / "pairs.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=mark)
        writer.writerow(ROWS[0])
        writer.writerows(
            [row["clean"], row["corrupted"] + ", ;\t", *map(json.dumps, list(row.values())[2:])] for row in ROWS
        )
    expected = [pair._replace(corrupted=pair.corrupted + ", ;\t") for pair in PAIRS]
    assert without_source(read_pairs(str(path))) == expected


def test_spaces_after_commas_would_be_part_of_prompts(tmp_path):
    (tmp_path / "p.csv").write_text("clean, corrupted, answers, wrong_answers\na, b, c, d\n")
    with pytest.raises(UserError, match=r"p\.csv:1: there is a space after each of the commas, which would be part"):
        read_pairs(str(tmp_path / "p.csv"))


def test_a_row_group_of_parquet_that_cannot_be_decoded_costs_no_row_before_it(tmp_path):
    """Rows are decoded in batches; an error names its own row."""
    texts = pyarrow.array([b"Anna"] * 150 + [b"\xe9"] + [b"Anna"] * 50)
    column = pyarrow.Array.from_buffers(pyarrow.string(), len(texts), texts.buffers())
    names = ("clean", "corrupted", "answers", "wrong_answers")
    parquet.write_table(pyarrow.table(dict.fromkeys(names, column)), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet row 150: a cell cannot be read"):
        read_pairs(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("ending", WRITERS)
def test_numbers_after_a_text_prompt_are_text_but_for_lists_of_lists(tmp_path, ending):
    rows = [{"clean": "2 + 3 =", "corrupted": "2 + 4 =", "answers": [5], "wrong_answers": [6, 7]}]
    pairs = read_pairs(WRITERS[ending][0](tmp_path / f"text.{ending}", rows))
    as_text = (("[5]",), ("[6, 7]",)) if ending == "csv" else (("5",), ("6", "7"))
    assert (pairs[0].answers, pairs[0].wrong_answers, pairs[0].numbers) == (*as_text, True)
    rows = [{"clean": "2 + 3 =", "corrupted": "2 + 4 =", "answers": [[5]], "wrong_answers": [[6], [7, 8]]}]
    pairs = read_pairs(WRITERS[ending][0](tmp_path / f"ids.{ending}", rows))
    assert (pairs[0].answers, pairs[0].wrong_answers, pairs[0].numbers) == (((5,),), ((6,), (7, 8)), False)


@pytest.mark.parametrize("cell", ["[1]", "[1, 2]", "[[1]]", "[true]", "[1.5]", "[null]", "[x]", "[INST] a [/INST]"])
def test_a_cell_of_a_csv_file_beside_text_stays_text(tmp_path, cell):
    path = write_csv(tmp_path / "p.csv", [{"clean": cell, "corrupted": "[2]", "answers": " a", "wrong_answers": " b"}])
    assert read_pairs(path)[0][:4] == (cell, "[2]", (" a",), (" b",))
    path = write_csv(tmp_path / "t.csv", [{"clean": cell, "corrupted": "[3]", "correct_idx": 5, "incorrect_idx": 6}])
    assert read_pairs(path)[0][:2] == (cell, "[3]")
    if cell != "[[1]]":  # which is a token id
        path = write_csv(tmp_path / "a.csv", [{"clean": "x", "corrupted": "y", "answers": cell, "wrong_answers": " b"}])
        assert read_pairs(path)[0].answers == (cell,)


@pytest.mark.parametrize("ending", ["jsonl", "csv", "json", "parquet"])
def test_a_list_that_is_spelled_as_text_is_refused(tmp_path, ending):
    """As pandas writes a column of lists to CSV."""
    plain = {"clean": "a b", "corrupted": "c b", "answers": " a", "wrong_answers": " c"}
    message = "{'role': 'user', 'content': 'a'}"
    for column, cell, said in (
        (
            "answers",
            "[' a', ' b']",
            r"""answers is the text "\[' a', ' b'\]", which spells a list; write the list as JSON, """,
        ),
        ("wrong_answers", "[' c']", r"""if the text itself is the answer, \["\[' c'\]"\]$"""),
        ("clean", f"[{message}]", "clean is the text .*, which spells a list of messages; write the list as JSON"),
    ):
        path = WRITERS[ending][0](tmp_path / f"p.{ending}", [plain | {column: cell}])
        with pytest.raises(UserError, match=rf"^{path}(:| row )[012]: .*{said}"):
            read_pairs(path)
    meant = [plain | {"clean": "[' a', ' b']", "answers": ["['a']"], "wrong_answers": "['a]"}]
    [pair] = read_pairs(WRITERS[ending][0](tmp_path / f"q.{ending}", meant))
    assert pair[:4] == ("[' a', ' b']", "c b", ("['a']",), ("['a]",))


@pytest.mark.parametrize("ending", ["jsonl", "csv", "json", "parquet"])
def test_a_lone_text_is_one_answer(tmp_path, ending):
    rows = [{"clean": "a b", "corrupted": "c b", "answers": " a", "wrong_answers": " c"}]
    pairs = read_pairs(WRITERS[ending][0](tmp_path / f"pairs.{ending}", rows))
    assert without_source(pairs) == [Pair(clean="a b", corrupted="c b", answers=(" a",), wrong_answers=(" c",))]


def test_columns_are_renamed_and_may_be_swapped(tmp_path):
    rows = [{"prompt": "a b", "corrupted": "c b", "good": " a", "bad": " c", "part": "test"}]
    path = write_jsonl(tmp_path / "other.jsonl", rows)
    columns = {"clean": "prompt", "answers": "good", "wrong_answers": "bad", "split": "part"}
    assert without_source(read_pairs(path, columns=columns)) == [
        Pair(clean="a b", corrupted="c b", answers=(" a",), wrong_answers=(" c",), split="test")
    ]
    path = write_jsonl(tmp_path / "ours.jsonl", ROWS)
    swapped = {"clean": "corrupted", "corrupted": "clean", "answers": "wrong_answers", "wrong_answers": "answers"}
    first = read_pairs(path, columns=swapped)[0]
    assert (first.clean, first.corrupted, first.answers) == (ROWS[0]["corrupted"], ROWS[0]["clean"], (" Bo",))


def test_prompt_text_is_kept_exactly(tmp_path):
    """White space at the ends, quotes, commas, line breaks in a cell, and separators that split lines elsewhere."""
    odd = ' "a",\n\tb\u2028c\u0085d\x0c é 😀 \r\n '
    rows = [{"clean": odd, "corrupted": odd + "x", "answers": " a\n", "wrong_answers": "b "}]
    (tmp_path / "raw.jsonl").write_text(json.dumps(rows[0], ensure_ascii=False) + "\n", encoding="utf-8")
    for path in [str(tmp_path / "raw.jsonl"), *(w[0](tmp_path / f"p.{e}", rows) for e, w in WRITERS.items())]:
        assert without_source(read_pairs(path)) == [
            Pair(clean=odd, corrupted=odd + "x", answers=(" a\n",), wrong_answers=("b ",))
        ], path


def test_csv_rows_are_named_by_the_line_they_start_on(tmp_path):
    rows = [{**ROWS[0], "clean": "two\nlines"}, ROWS[1]]
    path = write_csv(tmp_path / "pairs.csv", rows)
    assert [pair.source for pair in read_pairs(path)] == [f"{path}:2", f"{path}:4"]


def test_blank_lines_count_but_are_no_rows(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n" + json.dumps(ROWS[0]) + "\n\n \n" + json.dumps(ROWS[1]))
    assert [pair.source for pair in read_pairs(str(path))] == [f"{path}:2", f"{path}:5"]
    path = tmp_path / "pairs.csv"
    path.write_text("clean,corrupted,answers,wrong_answers\n\na,b,c,d\n\n")
    assert [pair.source for pair in read_pairs(str(path))] == [f"{path}:3"]


def test_byte_order_mark_and_windows_lines(tmp_path):
    """As spreadsheet programs save them."""
    text = "clean,corrupted,answers,wrong_answers\r\na b,c b, a, c\r\n"
    (tmp_path / "pairs.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "pairs.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[0]).encode() + b"\r\n")
    assert without_source(read_pairs(str(tmp_path / "pairs.csv"))) == [
        Pair(clean="a b", corrupted="c b", answers=(" a",), wrong_answers=(" c",))
    ]
    assert without_source(read_pairs(str(tmp_path / "pairs.jsonl"))) == PAIRS[:1]


def test_named_splits_of_a_saved_dataset(tmp_path):
    folder = tmp_path / "splits"
    DatasetDict({"train": Dataset.from_list(ROWS[:1]), "test": Dataset.from_list(ROWS[1:])}).save_to_disk(folder)
    pairs = read_pairs(str(folder))
    assert [(p.split, p.source) for p in pairs] == [
        ("train", f"{folder} train row 0"),
        ("test", f"{folder} test row 0"),
    ]
    only = tmp_path / "only"
    DatasetDict({"train": Dataset.from_list(ROWS)}).save_to_disk(only)
    assert without_source(read_pairs(str(only))) == PAIRS


SMALL = {
    "eap-ig": (
        {"clean": "a to", "corrupted": "b to", "corrupted_hard": "c to", "correct_idx": 5, "incorrect_idx": "7"},
        Pair(clean="a to", corrupted="b to", answers=((5,),), wrong_answers=((7,),)),
    ),
    "eap-ig-greater-than": (
        {"clean": "from 1397 to 13", "corrupted": "from 1301 to 13", "label": "97"},
        Pair(
            clean="from 1397 to 13",
            corrupted="from 1301 to 13",
            answers=("98", "99"),
            wrong_answers=tuple(f"{n:02d}" for n in range(98)),
        ),
    ),
    "chat": (
        {
            "messages": [{"role": "user", "content": "a"}],
            "corrupted_messages": [{"role": "user", "content": "b"}],
            "answers": "x",
            "wrong_answers": [" z"],
        },
        Pair(
            clean="",
            corrupted="",
            answers=("x",),
            wrong_answers=(" z",),
            messages=((Message("user", "a"),), (Message("user", "b"),)),
        ),
    ),
    "auto-circuit": (
        {"clean": "a to", "corrupt": "b to", "answers": [" x", " y"], "wrong_answers": [" z"]},
        Pair(clean="a to", corrupted="b to", answers=(" x", " y"), wrong_answers=(" z",)),
    ),
    "edge-pruning": (
        {
            "clean": "I see <predict>you</predict> now",
            "corrupted": "I see<predict> me</predict>",
            "split": "validation",
        },
        Pair(clean="I see", corrupted="I see", answers=(" you",), wrong_answers=(" me",), split="validation"),
    ),
    "edge-pruning-ioi": (
        {"a": "Al", "b": "Bo", "ioi_sentences": "Al, Bo. Bo met Al", "corr_ioi_sentences": "Cy, Di. Ed met Fay"},
        Pair(clean="Al, Bo. Bo met", corrupted="Cy, Di. Ed met", answers=(" Al",), wrong_answers=(" Bo",)),
    ),
    "edge-pruning-greater-than": (
        {"prefix": "from 1101 to 11", "corr_prefix": "from 1750 to 17", "digits": "01", "corr_digits": "50"},
        Pair(
            clean="from 1101 to 11",
            corrupted="from 1750 to 17",
            answers=tuple(f"{n:02d}" for n in range(2, 100)),
            wrong_answers=("00", "01"),
        ),
    ),
    "edge-pruning-pronoun": (
        {"prefix": "So Al is, isn't", "corr_prefix": "So Di is, isn't", "pronoun": "he", "corr_pronoun": "she"},
        Pair(clean="So Al is, isn't", corrupted="So Di is, isn't", answers=(" he",), wrong_answers=(" she",)),
    ),
}


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_neighbouring_formats(tmp_path, name, forced):
    row, expected = SMALL[name]
    pairs = read_pairs(write_jsonl(tmp_path / "rows.jsonl", [row]), name if forced else None)
    assert without_source(pairs) == [expected]


def test_auto_circuit_file(tmp_path):
    row, expected = SMALL["auto-circuit"]
    assert without_source(read_pairs(write_json(tmp_path / "x.json", {"prompts": [row]}))) == [expected]


def test_every_format_is_tested():
    assert set(SMALL) | {"pairs", "mib"} == set(FORMATS)


def mib_choices(right="B", other_key=2):
    labels = ["A", "B", "C"]
    return {
        "prompt": "A. red\nAnswer:",
        "choices": {"label": labels, "text": ["x", "y", "z"]},
        "answerKey": labels.index(right),
        "symbol_counterfactual": {"prompt": "C. red\nAnswer:", "choices": {"label": labels}, "answerKey": other_key},
    }


MIB_IOI = {
    "prompt": "Al, Bo. Bo met",
    "metadata": {"indirect_object": "Al", "subject": "Bo", "place": "zoo"},
    "choices": ["Al", "Bo"],
    "answerKey": 0,
    "abc_counterfactual": {"prompt": "Cy, Di. Ed met", "choices": ["Cy", "Di"], "answerKey": 1},
    "s2_io_flip_counterfactual": {"prompt": "Al, Bo. Al met", "choices": ["Al", "Bo"], "answerKey": 1},
}


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "folder"])
def test_mib(tmp_path, ending):
    write = WRITERS[ending][0]
    pairs = read_pairs(write(tmp_path / f"ioi.{ending}", [MIB_IOI]))
    assert without_source(pairs) == [
        Pair(clean="Al, Bo. Bo met", corrupted="Al, Bo. Al met", answers=(" Al",), wrong_answers=(" Bo",))
    ]
    path = write(tmp_path / f"choices.{ending}", [mib_choices()])
    assert without_source(read_pairs(path)) == [
        Pair(clean="A. red\nAnswer:", corrupted="C. red\nAnswer:", answers=(" B",), wrong_answers=(" C",))
    ]


def test_mib_counterfactual_is_chosen_by_the_columns(tmp_path):
    path = write_jsonl(tmp_path / "ioi.jsonl", [MIB_IOI])
    assert read_pairs(path, columns={"corrupted": "abc_counterfactual"})[0].corrupted == "Cy, Di. Ed met"
    unknown = {**MIB_IOI, "x_counterfactual": MIB_IOI["abc_counterfactual"], "s2_io_flip_counterfactual": None}
    with pytest.raises(UserError, match=r"2 counterfactuals \(abc_.*x_counterfactual\); name one with task.columns"):
        read_pairs(write_jsonl(tmp_path / "two.jsonl", [unknown]))


def test_mib_counterfactual_with_the_same_answer_leaves_all_other_labels(tmp_path):
    path = write_jsonl(tmp_path / "same.jsonl", [mib_choices("B", other_key=1)])
    assert read_pairs(path)[0].wrong_answers == (" A", " C")


def test_a_format_is_one_entry(tmp_path, monkeypatch):
    def reversed_text(values):
        return Pair(
            clean=values["a"][::-1],
            corrupted=values["b"][::-1],
            answers=(values["yes"],),
            wrong_answers=(values["no"],),
        )

    monkeypatch.setitem(FORMATS, "reversed", PairFormat(("a", "b", "yes", "no"), reversed_text))
    path = write_jsonl(tmp_path / "new.jsonl", [{"a": "12", "b": "34", "yes": "y", "no": "n"}])
    assert without_source(read_pairs(path)) == [Pair(clean="21", corrupted="43", answers=("y",), wrong_answers=("n",))]


REAL = {
    "formats/eap_ig_greater_than.csv": (100, "The contract lasted from the year 1352 to the year 13", 47, 53),
    "formats/eap_ig_ioi.csv": (
        100,
        "Then, Aaron and Amber were working at the house. Aaron decided to give a drink to",
        1,
        1,
    ),
    "formats/edge_pruning_gendered_pronoun.jsonl": (150, "So Hunter is always respectful to everyone, isn't", 1, 1),
    "formats/edge_pruning_greater_than.jsonl": (150, "The tour lasted from 1177 to 11", 22, 78),
    "formats/edge_pruning_ioi.jsonl": (
        200,
        "Friends Stacy and Inez found a blueberry at the gym. Inez gave it to",
        1,
        1,
    ),
    "pairs/stories260k/pronoun_noun_only.jsonl": (233, "There was a big girl who liked to play.", 1, 1),
    "pairs/babyllama105/natural_pronoun_swap.jsonl": (
        96,
        "One day, a fast driver named Tim went for a ride in his loud car.",
        1,
        1,
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files(shared, name):
    count, clean, right, wrong = REAL[name]
    pairs = read_pairs(str(shared / "data" / name))
    assert len(pairs) == count
    assert (pairs[0].clean, len(pairs[0].answers), len(pairs[0].wrong_answers)) == (clean, right, wrong)


def test_real_ioi_sentences_lose_their_last_name_only(shared):
    path = shared / "data/formats/edge_pruning_ioi.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, pair in zip(rows, read_pairs(str(path)), strict=True):
        assert pair.clean + pair.answers[0] == row["ioi_sentences"]
        assert row["corr_ioi_sentences"].startswith(pair.corrupted + " ")
        assert " " not in row["corr_ioi_sentences"][len(pair.corrupted) + 1 :]
        assert pair.wrong_answers == (" " + row["b"],)


def test_real_greater_than_answers_are_gpt2_tokens_that_exceed_the_year(shared, gpt2_tokenizer):
    pairs = read_pairs(str(shared / "data/formats/eap_ig_greater_than.csv"))
    for pair, example in zip(pairs, tokenize_pairs(pairs, gpt2_tokenizer, 64, vocab_size=50257), strict=True):
        year = int(pair.clean.split(" to ")[0][-2:])
        assert [int(gpt2_tokenizer.decode(ids)) for ids in example.answers] == list(range(year + 1, 100))
        assert [int(gpt2_tokenizer.decode(ids)) for ids in example.wrong_answers] == list(range(year + 1))


SCORABLE = {"edge_pruning_gendered_pronoun": 150, "edge_pruning_greater_than": 144, "edge_pruning_ioi": 143}
"""Rows whose two prompts have equally many GPT-2 tokens; the others are refused, whoever made the file."""


@pytest.mark.parametrize("name", SCORABLE)
def test_real_edge_pruning_rows_can_be_scored_with_gpt2(shared, gpt2_tokenizer, name):
    """One token an answer, as the files were made for GPT-2."""
    kept, refused = [], []
    for pair in read_pairs(str(shared / f"data/formats/{name}.jsonl")):
        try:
            kept += tokenize_pairs([pair], gpt2_tokenizer, 64, vocab_size=50257)
        except UserError as error:
            refused.append(str(error))
    assert len(kept) == SCORABLE[name]
    assert all("equal token length" in message for message in refused)
    assert name == "edge_pruning_ioi" or {len(a) for e in kept for a in (*e.answers, *e.wrong_answers)} == {1}
