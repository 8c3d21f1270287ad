"""The pair: the unit of a task, before and after tokenisation."""

from typing import NamedTuple

Text = str | tuple[int, ...]
"""A piece of a prompt: text, or token ids for models that have no tokenizer."""


class Pair(NamedTuple):
    """A clean and a corrupted prompt with the continuations that are right and wrong after the clean one."""

    clean: Text
    corrupted: Text
    answers: tuple[Text, ...]
    wrong_answers: tuple[Text, ...]
    split: str = ""
    """"train", "validation", "test" or "off_distribution"; empty when the split is still to be drawn."""
    source: str = ""
    """Where it came from, as `file:row` or `task #index`; goes into error messages."""
    template: str = ""
    """What it was made from; empty where that is not known."""


class Example(NamedTuple):
    """A tokenised pair. `clean` and `corrupted` have equal length; continuations follow either of them directly."""

    id: int
    """Stable identity: position in the whole data set before splitting. Seeds the gate noise and keys caches."""
    clean: tuple[int, ...]
    corrupted: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    wrong_answers: tuple[tuple[int, ...], ...]
    source: str
