"""Conversations: rendered as transformers renders them, on every day the same, and checked message by message."""

import json
import random
import re

import pytest

from bigcircuit.config.load import load
from bigcircuit.config.schema import TaskConfig
from bigcircuit.data.builders import LIST_BUILDERS
from bigcircuit.data.chat import ChatRenderer
from bigcircuit.data.dataset import load_task, make_pairs
from bigcircuit.data.pair import Message, Pair
from bigcircuit.data.shown_tokens import token_lines
from bigcircuit.errors import UserError
from tests.helpers.chat_models import CHATML, TEMPLATES, chat_tokenizer

CLEAN, CORRUPTED = "One day, Mary and Tim", "One day, John and Tim"


class Words:
    """Config of a model that knows all tokens."""

    vocab_size, max_position_embeddings, rope_parameters = 10**6, 4096, None


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer()


def row(*before: dict, clean=CLEAN, corrupted=CORRUPTED, after=(), **more) -> dict:
    """Row of a pair file whose conversations end with a user message, before a beginning of the reply."""
    conversations = {
        name: [*before, {"role": "user", "content": text}, *after]
        for name, text in (("clean", clean), ("corrupted", corrupted))
    }
    return {**conversations, "answers": [" She"], "wrong_answers": [" He"], **more}


def written(folder, *rows) -> str:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(path)


def task_of(path, **settings) -> TaskConfig:
    return TaskConfig.model_validate(
        {"name": "pairs", "path": path, "split": {"train": 0.5, "validation": 0, "test": 0.5}, **settings}
    )


def one_pair(folder, tokenizer, *rows, **settings) -> Pair:
    return make_pairs(task_of(written(folder, *rows), **settings), tokenizer)[0]


def examples(folder, tokenizer, *rows, **settings):
    data = load_task(task_of(written(folder, *rows), **settings), tokenizer, Words)
    return data, [one for split in data.splits.values() for one in split]


def two_rows(**more) -> list[dict]:
    other = CLEAN.replace("day", "night")
    return [row(**more), row(clean=other, corrupted=other.replace("Mary", "John"), **more)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_tokens_are_those_of_the_library(tmp_path, name):
    tokenizer = chat_tokenizer(TEMPLATES[name])
    data, found = examples(tmp_path, tokenizer, *two_rows())
    for example in found:
        clean, corrupted = data.pairs[example.id].messages
        for ids, messages in ((example.clean, clean), (example.corrupted, corrupted)):
            plain = tokenizer.apply_chat_template(
                [message._asdict() for message in messages],
                chat_template=TEMPLATES[name].replace("strftime_now('%d %b %Y')", "'01 Jan 2026'"),
                add_generation_prompt=True,
            )["input_ids"]
            assert list(ids) == plain
            assert ids.count(tokenizer.bos_token_id) == (name != "chatml")
    assert not data.notes, "special tokens of a template are no news"


def test_the_switch_for_thinking_and_the_beginning_of_the_reply(tmp_path, tokenizer):
    chat = {"system": "Be short.", "prefix": "The answer is", "arguments": {"enable_thinking": False}}
    pair = one_pair(tmp_path, tokenizer, row(), chat=chat)
    assert pair.clean == (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n" + CLEAN + "<|im_end|>\n<|im_start|>assistant\n"
        "<think>\n\n</think>\n\nThe answer is"
    )
    spoken = row(after=[{"role": "assistant", "content": "The answer is"}])
    assert one_pair(tmp_path, tokenizer, spoken, chat={**chat, "prefix": ""}).clean == pair.clean


def test_the_switch_is_passed_from_the_command_line():
    config = load(None, {"task.chat.arguments": {"enable_thinking": False}, "task.chat.system": "x" * 5000})
    assert config.task.chat.arguments == {"enable_thinking": False}
    assert len(config.task.chat.system or "") == 5000


def test_columns_of_messages_csv_cells_and_parts(tmp_path, tokenizer):
    one = row()
    expected = one_pair(tmp_path, tokenizer, one)
    named = {
        "messages": one["clean"],
        "corrupted_messages": one["corrupted"],
        "answers": [" She"],
        "wrong_answers": [" He"],
    }
    parts = {**one, "clean": [{"role": "user", "content": [{"type": "text", "text": CLEAN}], "name": None}]}
    for other in (named, parts):
        found = one_pair(tmp_path, tokenizer, other)
        assert found[:4] == expected[:4]
    table = tmp_path / "pairs.csv"
    cells = [json.dumps(one[name]).replace('"', '""') for name in ("clean", "corrupted")]
    table.write_text(f'clean,corrupted,answers,wrong_answers\n"{cells[0]}","{cells[1]}", She, He\n')
    assert make_pairs(task_of(str(table)), tokenizer)[0][:4] == expected[:4]


def test_plain_text_as_the_message_of_a_user(tmp_path, tokenizer):
    plain = {**row(), "clean": CLEAN, "corrupted": CLEAN.replace("Mary", "John")}
    assert one_pair(tmp_path, tokenizer, plain).clean == CLEAN
    assert one_pair(tmp_path, tokenizer, plain, chat={"text": "user"})[:4] == one_pair(tmp_path, tokenizer, row())[:4]


def test_the_date_is_a_setting_and_not_the_clock(tmp_path):
    tokenizer = chat_tokenizer(TEMPLATES["headers"])
    assert "Today is 01 Jan 2026." in one_pair(tmp_path, tokenizer, row()).clean
    assert "Today is 26 Jul 2024." in one_pair(tmp_path, tokenizer, row(), chat={"date": "2024-07-26"}).clean
    made_up = TEMPLATES["headers"].replace("'%d %b %Y'", "'%d' + '%b'")
    with pytest.raises(UserError, match="write the date into the template"):
        one_pair(tmp_path, chat_tokenizer(made_up), row())


def test_the_first_tokens_of_replies(tmp_path, tokenizer):
    rows = two_rows(answers=["She was a happy girl", "She was a sad girl"], wrong_answers=["He was a happy boy"])
    _, found = examples(tmp_path, tokenizer, *rows, answer_tokens=2)
    for example in found:
        assert [len(ids) for ids in (*example.answers, *example.wrong_answers)] == [2, 2]
        assert example.answers[0] == tuple(tokenizer("She was a happy girl", add_special_tokens=False)["input_ids"][:2])


WRONG = {
    "a system message twice": (
        row({"role": "system", "content": "Hi."}),
        {"system": "Be short."},
        "task.chat.system is set",
    ),
    "the reply begun twice": (
        row(after=[{"role": "assistant", "content": "So"}]),
        {"prefix": "So"},
        "task.chat.prefix is set",
    ),
    "nothing to reply to": (
        {**row(), "clean": [{"role": "system", "content": "Hi."}], "corrupted": [{"role": "system", "content": "Ho."}]},
        {},
        "no user message at its end",
    ),
    "a control token": (
        row(clean="One <|im_end|> day", corrupted="Two <|im_end|> day"),
        {},
        "'<|im_end|>' in its text",
    ),
    "other roles": ({**row(), "corrupted": [{"role": "system", "content": CORRUPTED}]}, {}, "give both the same"),
    "a role of its own": (row({"role": "human", "content": "Hi."}), {}, "message 1 of clean has role 'human'"),
    "no content": (row({"role": "user", "content": " "}), {}, "message 1 of clean has content ' '"),
    "a picture": (row({"role": "user", "content": [{"type": "image"}]}), {}, "a part of type 'image'"),
    "a call of a tool": (
        row({"role": "user", "content": "Hi.", "tool_calls": []}),
        {},
        "'tool_calls', which is not read",
    ),
    "text on one side": ({**row(), "corrupted": CORRUPTED}, {}, "corrupted must be a list of messages"),
    "an unknown argument": (row(), {"arguments": {"enable_thinkin": True}}, "task.chat.arguments.enable_thinkin"),
    "answers of a file": (row(), {"answers": ["Yes"]}, "task.chat.answers"),
    "no conversation": (
        {**row(), "clean": CLEAN, "corrupted": CORRUPTED},
        {"system": "Hi."},
        "task.chat.system is set, but no prompt",
    ),
    "token ids": (
        {"clean": [1], "corrupted": [2], "answers": [[3]], "wrong_answers": [[4]]},
        {"text": "user"},
        "token ids",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_rendered_is_one_line(tmp_path, tokenizer, name):
    wrong, chat, expected = WRONG[name]
    with pytest.raises(UserError, match=r".") as caught:
        one_pair(tmp_path, tokenizer, wrong, chat=chat)
    assert expected in str(caught.value) and "\n" not in str(caught.value)
    assert "pairs.jsonl" in str(caught.value) or "task.chat" in str(caught.value)


@pytest.mark.parametrize(
    "template, before, expected",
    [
        ("turns", {"role": "system", "content": "Hi."}, "System role not supported"),
        ("turns", {"role": "user", "content": "Hi."}, "roles must alternate"),
        (
            "instructions",
            {"role": "system", "content": "Never say no."},
            "leaves out or changes the text of message 1 (system)",
        ),
    ],
)
def test_what_a_template_refuses_or_leaves_out(tmp_path, template, before, expected):
    with pytest.raises(UserError) as caught:
        one_pair(tmp_path, chat_tokenizer(TEMPLATES[template]), row(before))
    assert "pairs.jsonl:1: clean" in str(caught.value) and expected in str(caught.value)


def test_pairs_of_unequal_length_and_pairs_that_cannot_be_rendered_are_left_out_and_counted(tmp_path, tokenizer):
    rows = [*two_rows(), row(corrupted="One very long day, a boy"), row(clean="a <|im_end|>", corrupted="b <|im_end|>")]
    with pytest.raises(UserError, match=r"pairs.jsonl:3: clean has \d+ tokens and corrupted"):
        examples(tmp_path, tokenizer, *rows[:3])
    data, found = examples(tmp_path, tokenizer, *rows, bad_pairs="drop")
    assert len(found) == 2 and len(data.bad) == 2


@pytest.mark.parametrize("tokenizer", [None, chat_tokenizer(None)], ids=["none", "no template"])
def test_a_model_without_a_template_is_refused(tmp_path, tokenizer):
    with pytest.raises(UserError, match="no chat template; give a chat model"):
        one_pair(tmp_path, tokenizer, row())


def test_templates_run_in_the_sandbox_of_the_library(tmp_path):
    hostile = CHATML + "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(UserError, match="SecurityError"):
        one_pair(tmp_path, chat_tokenizer(hostile), row())


REQUESTS = [
    *({"prompt": f"Tell me how to steal a {thing}", "harmful": True} for thing in ("cat", "dog", "box", "ball")),
    *({"prompt": f"Tell me how to sell a {thing}", "harmful": False} for thing in ("cake", "hat", "house", "boat")),
]
QUESTIONS = [
    {"question": f"What color is the {thing}?", "correct": right, "incorrect": wrong}
    for thing, right, wrong in (
        ("sky", "blue", "yellow"),
        ("sun", "yellow", "white"),
        ("grass", "green", "red"),
        ("snow", "white", "blue"),
    )
]
LISTS = {"refusal": REQUESTS, "sycophancy": QUESTIONS}


@pytest.mark.parametrize("name", LIST_BUILDERS)
def test_tasks_from_a_list(tmp_path, tokenizer, name):
    task = task_of(written(tmp_path, *LISTS[name]), name=name)
    data = load_task(task, tokenizer, Words)
    assert data.pairs and data.pairs == make_pairs(task, tokenizer)
    for pair in data.pairs:
        assert pair.clean != pair.corrupted and str(pair.clean).startswith("<|im_start|>user\n")
        if name == "refusal":
            assert "steal" in pair.clean and "sell" in pair.corrupted and pair.answers == ("I", "Sorry")
        else:
            question = next(q for q in QUESTIONS if q["question"] in pair.clean)
            assert (pair.answers, pair.wrong_answers) == ((" " + question["incorrect"],), (" " + question["correct"],))
            assert question["incorrect"] in pair.clean and question["correct"] in pair.corrupted
            assert str(pair.clean).endswith("The answer is")
    other = make_pairs(task_of(task.path, name=name, chat={"answers": ["No"], "wrong_answers": ["Yes"]}), tokenizer)
    assert {(pair.answers, pair.wrong_answers) for pair in other} == {(("No",), ("Yes",))}


def test_harmful_requests_meet_harmless_ones_of_as_many_tokens_and_none_twice(tokenizer):
    rows = [{"prompt": " ".join("a" * (index % 7 + 1)) + f" {index}", "harmful": index % 3 == 0} for index in range(60)]
    pairs = list(LIST_BUILDERS["refusal"].draw_pairs(rows, tokenizer, random.Random(0)))
    texts = [messages[0].content for pair in pairs for messages in pair.messages]
    assert len(pairs) > 10 and len(set(texts)) == len(texts)
    for pair in pairs:
        clean, corrupted = (tokenizer(one[0].content)["input_ids"] for one in pair.messages)
        assert len(clean) == len(corrupted)
        assert [int(one[0].content.rsplit(" ", 1)[1]) % 3 == 0 for one in pair.messages] == [True, False]


@pytest.mark.parametrize(
    "name, rows, expected",
    [
        ("refusal", [{"prompt": "Hi", "harmful": "perhaps"}], "harmful is 'perhaps'; use true or false"),
        ("refusal", [{"prompt": "Hi", "harmful": True}], "no two requests have as many tokens"),
        ("refusal", [{"prompt": "Hi"}], "nothing in column harmful"),
        ("sycophancy", [{"question": "A or B?", "correct": "A", "incorrect": ""}], "nothing in column incorrect"),
        ("sycophancy", [{"question": "Who?", "correct": "a", "incorrect": "the cat and the dog"}], "give more rows"),
    ],
)
def test_lists_that_no_pair_can_be_made_of(tmp_path, tokenizer, name, rows, expected):
    path = written(tmp_path, *rows)
    with pytest.raises(UserError) as caught:
        make_pairs(task_of(path, name=name), tokenizer)
    assert str(caught.value).startswith(path) and expected in str(caught.value)


def test_a_list_is_asked_for_and_a_path_that_is_not_read_is_told(tokenizer):
    with pytest.raises(UserError, match="task.name refusal is built from a list; set task.path"):
        make_pairs(TaskConfig(name="refusal"), tokenizer)
    with pytest.raises(UserError, match="set task.name to pairs to read it"):
        make_pairs(TaskConfig(name="ioi", path="x.jsonl"), tokenizer)


def test_a_config_that_names_every_default_is_like_one_that_names_none(tmp_path, tokenizer):
    plain = {**row(), "clean": CLEAN, "corrupted": CORRUPTED}
    task = task_of(written(tmp_path, plain))
    assert make_pairs(TaskConfig.model_validate(task.model_dump()), tokenizer) == make_pairs(task, tokenizer)


def test_of_a_long_system_message_check_shows_the_beginning_and_the_end(tmp_path, tokenizer):
    _, found = examples(tmp_path, tokenizer, *two_rows(), chat={"system": "Be kind. " * 60}, max_tokens=1000)
    lines = list(token_lines(found[0], tokenizer, 100))
    text = "\n".join(lines)
    hidden = int(re.search(r"\.\.\. (\d+) tokens that both share \.\.\.", text)[1])
    plain = [re.sub(r"<\|im_\w+\|>", "special", line) for line in lines]
    shown = sum(line.count("|") - 1 for line in plain if line.startswith("  clean"))
    assert shown - 1 + hidden == len(found[0].clean) and hidden > 100
    assert text.startswith("  clean          |<|im_start|>|") and " Mary|" in text and "^" in text


def test_a_renderer_leaves_the_messages_in_the_pair(tokenizer):
    messages = tuple((Message("user", text),) for text in (CLEAN, CORRUPTED))
    pair = Pair(clean="", corrupted="", answers=("x",), wrong_answers=("y",), messages=messages)
    rendered = ChatRenderer(tokenizer, TaskConfig().chat, "f").render(pair)
    assert rendered.messages == messages and CLEAN in str(rendered.clean) and CORRUPTED in str(rendered.corrupted)
