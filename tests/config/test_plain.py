"""Texts and numbers of settings are such as files and float32 can hold, wherever a setting comes from."""

import math

import pytest

from bigcircuit.config.choices import OneOf
from bigcircuit.config.load import dotted_keys, load, nearest, setting_fields
from bigcircuit.config.plain import shown, value_problem
from bigcircuit.config.words import NAMES, VALUES
from bigcircuit.errors import UserError

BAD = [
    ("a\0b", "has a null character"),
    ("\ud800", "is not UTF-8 text"),
    ("\udcff", "is not UTF-8 text"),
    ("", "is empty"),
    ("runs/" + "x" * 256, "is longer than names may be (255 bytes)"),
    ("é" * 128, "is longer than names may be (255 bytes)"),
    ("x/" * 2100, "is longer than names may be (255 bytes)"),
    (10**30, "is beyond 64 bits"),
    (-(2**63) - 1, "is beyond 64 bits"),
    (1e300, "is 1e+300, which is no number that float32 holds"),
    (math.nan, "is nan, which is no number that float32 holds"),
    (-math.inf, "is -inf, which is no number that float32 holds"),
]


@pytest.mark.parametrize(("value", "problem"), BAD)
def test_what_no_setting_can_be_is_named_wherever_it_is(value, problem):
    assert value_problem(value) == problem
    assert value_problem({"a": [1, ("x", value)]}) == value_problem({value: 1}) == problem


@pytest.mark.parametrize(
    "value", ["x" * 255, "é" * 127, "runs/[/x", 2**63 - 1, 3.4e38, True, None, [], {}, "a/" * 2000]
)
def test_all_else_is_plain(value):
    assert value_problem(value) is None


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("output", "a\0b", "output has a null character"),
        ("output", "", "output is empty"),
        ("model.path", "x" * 300, "model.path is longer than names may be"),
        ("task.columns", {"clean": "\ud800"}, "task.columns is not UTF-8 text"),
        ("train.lr", "1e300", "train.lr is 1e[+]300, which is no number that float32 holds"),
        ("train.lr", math.inf, "train.lr: input should be a finite number"),
        ("gates.init", math.nan, "gates.init: input should be a finite number"),
        ("task.seed", 10**30, "task.seed is beyond 64 bits"),
        ("population.seeds", 10**9, "population.seeds: input should be less than or equal to 10000"),
        ("population.members", [{"train.lr": 1e300}], "population.members is 1e[+]300"),
        ("train", 3, "train is a section and takes settings, not 3; did you mean train.steps[?]"),
        ("ablation.kind", "resample", "did you mean interchange[?]"),
        ("model.dtype", "bf16", "did you mean bfloat16[?]"),
        ("model.dtype", "fp16", "did you mean float16[?]"),
    ],
)
def test_settings_are_checked_in_one_line(key, value, message):
    with pytest.raises(UserError, match=f"^command line: .*{message}") as caught:
        load(None, {key: value})
    assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_a_value_is_shown_in_a_few_characters():
    ring = []
    ring.append(ring)
    assert shown(["x" * 1000]) == '["' + "x" * 58
    assert shown(ring) == "a list" and shown(10**5000) == "a int"


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("ablation", "ablation.kind"),
        ("model", "model.path"),
        ("learning_rate", "train.lr"),
        ("train.max_steps", "train.steps"),
    ],
)
def test_words_of_others_lead_to_the_setting(word, key):
    assert nearest(word, dotted_keys()) == f"; did you mean {key}?"


def test_words_of_others_stand_for_settings_and_choices_that_there_are():
    fields = setting_fields()
    assert set(NAMES.values()) <= set(fields) and not set(NAMES) & set(fields)
    choices = {
        name for field in fields.values() for one in field.metadata if isinstance(one, OneOf) for name in one.names
    }
    texts = {
        word for field in fields.values() for word in getattr(field.annotation, "__args__", ()) if isinstance(word, str)
    }
    assert set(VALUES.values()) <= choices | texts and not set(VALUES) & (choices | texts)
