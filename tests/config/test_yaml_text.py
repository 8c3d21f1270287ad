"""YAML of anybody is refused in one line before any of it is built, or is plain data of a reasonable size."""

import time
import tracemalloc

import pytest
import yaml

from bigcircuit.config.yaml_text import UnreadableYaml, parse_yaml

SELF = "an anchor holds its own alias; write its content out"
DEEP = "it is nested more than 50 deep"
LARGE = "aliases make it larger than 100,000 values; write less"


def bomb(levels, width=9):
    """YAML of a few hundred bytes whose last anchor `z` holds width ** levels values."""
    names = "abcdefgh"[:levels] + "z"
    lines = [f"{name}: &{name} [{', '.join(['x' if not index else '*' + names[index - 1]] * width)}]"
             for index, name in enumerate(names)]  # fmt: skip
    return "\n".join(lines) + "\n"


BAD = {
    "a list in itself": ("&a [*a]", 1, SELF),
    "a mapping in itself": ("x: 1\ny: &a {z: *a}", 2, SELF),
    "a merge of itself": ("&a {<<: *a}", 1, SELF),
    "a key that holds its anchor": ("&a {? *a : 1}", 1, SELF),
    "a bomb": (bomb(7), 6, LARGE),
    "a bomb in a key": (bomb(7) + "? *z\n: 1\n", 6, LARGE),
    "a bomb of merges": ("a: &a {x: 1}\n" + "".join(f"{b}: &{b} {{<<: [{', '.join(['*' + a] * 20)}]}}\n"
                                                      for a, b in zip("abcde", "bcdef", strict=True)), 5, LARGE),
    "deep lists": ("[" * 60 + "]" * 60, 1, DEEP),
    "deeper lists": ("[" * 150 + "]" * 150, 1, DEEP),
    "deep by aliases": ("a: &a " + "[" * 30 + "]" * 30 + "\nb: " + "[" * 30 + "*a" + "]" * 30, 1, DEEP),
    "deep blocks": ("".join(" " * i + "a:\n" for i in range(99)), 50, DEEP),
    "an endless number": (f"a:\n  {'9' * 5000}", 2, "a number has 5,000 digits; quote it if it is text"),
    "an endless number in base 16": ("0x" + "f" * 5000, 1, "a number has 5,002 digits; quote it if it is text"),
    "an endless number in base 60": ("1:" + "59:" * 3000 + "1", 1, "a number has 9,003 digits; quote it if it is text"),
    "an impossible date": ("a: 2026-13-45", None, "not valid YAML (month must be in 1..12)"),
    "no number": ("!!int x", None, "not valid YAML (invalid literal for int() with base 10: 'x')"),
    "an empty number": ("!!int ''", None, "not valid YAML (string index out of range)"),
    "a null byte": ("a: \0", None, "not valid YAML (special characters are not allowed)"),
    "a tag of Python": ("!!python/object/apply:int [1]", 1, "not valid YAML (could not determine a constructor"),
    "a long text": ("a: " + "x" * 1_000_000, None, "it has more than 1,000,000 characters; is it a config?"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_plain_data_is_refused_at_once(name):
    text, line, message = BAD[name]
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(UnreadableYaml) as caught:
        parse_yaml(text)
    seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert str(caught.value).startswith(message) and caught.value.line == line
    assert seconds < 5 and peak < 60 * 2**20


@pytest.mark.parametrize("kind", [yaml.SafeLoader, yaml.BaseLoader])
def test_aliases_of_a_reasonable_size_are_read(kind):
    read = parse_yaml(bomb(3, width=3), kind)
    assert read["z"] == [[[["x"] * 3] * 3] * 3] * 3


def test_a_change_of_what_one_alias_stands_for_changes_nothing_else():
    read = parse_yaml("a: &a {x: [1]}\nb: *a\nc: {<<: *a}\n")
    read["a"]["x"].append(2)
    assert read == {"a": {"x": [1, 2]}, "b": {"x": [1]}, "c": {"x": [1]}}
