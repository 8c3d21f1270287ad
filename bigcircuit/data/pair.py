"""Pair: the unit of a task, before and after tokenisation."""

from typing import NamedTuple

TokenIds = tuple[int, ...]
Text = str | TokenIds
"""Prompt or answer: text, or token ids for models that have no tokenizer."""


class Message(NamedTuple):
    """Message of a conversation."""

    role: str
    """"system", "developer", "user", "assistant" or "tool"."""
    content: str


class Pair(NamedTuple):
    """Clean and corrupted prompt with the right and wrong continuations of the clean prompt."""

    clean: Text
    corrupted: Text
    answers: tuple[Text, ...]
    wrong_answers: tuple[Text, ...]
    split: str = ""
    """"train", "validation", "test" or "off_distribution"; empty if the split is still to be drawn."""
    source: str = ""
    """Origin of the pair, as `file:row` or `task #index`; part of error messages."""
    template: str = ""
    """Template that the pair was made from; empty if unknown."""
    numbers: bool = False
    """Whether answers are written as numbers after a text prompt, and were read as text."""
    messages: tuple[tuple[Message, ...], ...] = ()
    """Conversations that the clean and the corrupted prompt are rendered from, special tokens included; empty for other prompts.
    Until then both prompts are empty."""


class Example(NamedTuple):
    """Tokenised pair. `clean` and `corrupted` have equal length; a continuation directly follows either."""

    id: int
    """Index of the pair in the whole data set before splitting. Seeds the gate noise and keys caches."""
    clean: TokenIds
    corrupted: TokenIds
    answers: tuple[TokenIds, ...]
    wrong_answers: tuple[TokenIds, ...]
    source: str
    document: int = -1
    """Document that a window of general text is of; -1 for a pair. A window is its context, twice, and what follows as the only
    answer: every token of the answer is scored."""

    @property
    def is_window(self) -> bool:
        """Whether the example is a window of general text."""
        return self.document >= 0
