"""Checked access to the cells of a row. Every function raises ValueError with a message that names the column."""

import ast
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from bigcircuit.data.pair import Message, Text

Values = Mapping[str, Any]
ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles of messages."""


class CsvList(list):
    """List of numbers that a CSV cell spells, with the cell itself: token ids in a row of token ids, else text."""

    def __init__(self, items: list, written: str) -> None:
        super().__init__(items)
        self.written = written


def text(values: Values, column: str) -> str:
    """Read a cell that must be text."""
    value: Any = as_written(values.get(column))
    if not isinstance(value, str):
        raise ValueError(f"{column} must be text, not {value!r:.60}")
    return _valid_unicode(value, column)


def prompt(values: Values, column: str) -> Text:
    """Read a prompt: text, kept exactly, or a list of token ids for models without a tokenizer."""
    value: Any = values.get(column)
    if isinstance(value, str):
        if is_conversation(messages := _spelled_list(value)) and all("role" in message for message in messages):
            raise ValueError(
                f"{column} is the text {value!r:.60}, which spells a list of messages; write the list as JSON"
            )
        return _valid_unicode(value, column)
    if is_flat(value):
        return tuple(value)
    raise ValueError(f"{column} must be text or a list of token ids, not {value!r:.60}")


def is_conversation(value: Any) -> bool:
    """Return whether a cell is a list of objects, as messages are written."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) for item in value)


def conversation(values: Values, column: str) -> tuple[Message, ...]:
    """Read a list of messages, each an object with `role` and `content`: text, or a list of parts that are all text."""
    value: Any = values.get(column)
    if not is_conversation(value):
        raise ValueError(f"{column} must be a list of messages with role and content, not {value!r:.60}")
    return tuple(_message(item, f"message {number} of {column}") for number, item in enumerate(value, 1))


def _message(item: Mapping[str, Any], where: str) -> Message:
    other = next((key for key, value in item.items() if key not in ("role", "content") and value is not None), None)
    if other is not None:
        raise ValueError(f"{where} has {other!r:.40}, which is not read; leave it out")
    role, content = item.get("role"), item.get("content")
    if role not in ROLES:
        raise ValueError(f"{where} has role {role!r:.40}; use {', '.join(ROLES)}")
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        kind = next((part.get("type") for part in content if part.get("type") != "text"), None)
        if kind is not None:
            raise ValueError(f"{where} has a part of type {kind!r:.40}; conversations are text alone")
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str) or not content.strip():
        raise ValueError(f"{where} has content {content!r:.40}; give it text")
    return Message(str(role), _valid_unicode(content, where))


def answers(values: Values, column: str) -> tuple[Text, ...]:
    """Read answers: a text, a list of texts or of lists of token ids. A flat list of numbers is ONE answer of several ids."""
    value: Any = values.get(column)
    if isinstance(value, str):
        if (found := _spelled_list(value)) and all(isinstance(item, str) for item in found):
            raise ValueError(
                f"{column} is the text {value!r:.60}, which spells a list; write the list as JSON, {json.dumps(found):.60}, or, "
                f"if the text itself is the answer, {json.dumps([value]):.60}"
            )
        return (_valid_unicode(value, column),)
    if value == []:
        raise ValueError(f"{column} is an empty list; give at least one answer and one wrong answer")
    if is_flat(value):
        return (tuple(value),)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(_valid_unicode(item, column) for item in value)
    if isinstance(value, list) and all(map(is_flat, value)):
        return tuple(map(tuple, value))
    raise ValueError(f"{column} must be text, a list of texts or a list of token ids, not {value!r:.60}")


def numbers_as_text(value: Any) -> Any:
    """Return answers after a text prompt with flat lists of numbers as texts: [5, 6] are the answers 5 and 6, and a CSV cell
    [5] is that text. Lists of lists, such as [[5]], stay token ids."""
    if not is_flat(value):
        return value
    return as_written(value) if isinstance(value, CsvList) else [str(number) for number in value]


def as_written(value: Any) -> Any:
    """Return a cell of numbers of a CSV file as its text; other cells as they are."""
    return value.written if isinstance(value, CsvList) else value


def is_flat(value: Any) -> bool:
    """Return whether a cell is a list of whole numbers and not empty."""
    return isinstance(value, list) and bool(value) and all(map(_is_id, value))


def are_ids(value: Any) -> bool:
    """Return whether a cell is a prompt of token ids, or answers of token ids."""
    return is_flat(value) or (isinstance(value, list) and bool(value) and all(map(is_flat, value)))


def token_id(values: Values, column: str) -> int:
    """Read a token id: a whole number, or a whole number written as text."""
    value: Any = values.get(column)
    if _is_id(value):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,12}\s*", value):
        return int(value)
    raise ValueError(f"{column} must be a token id (a whole number), not {value!r:.60}")


def two_digits(values: Values, column: str) -> int:
    """Read a two-digit year from 0 to 98; no two-digit year is greater than 99."""
    value: Any = values.get(column)
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]{1,2}", str(value)):
        raise ValueError(f"{column} must be the two digits of a year, not {value!r:.60}")
    if int(value) == 99:
        raise ValueError(f"{column} is 99 and nothing is greater; remove the row")
    return int(value)


def nested(values: Values, column: str) -> Values:
    """Read a cell that must be an object with columns of its own."""
    value: Any = values.get(column)
    if not isinstance(value, Mapping):
        raise ValueError(f"{column} must be an object, not {value!r:.60}")
    return value


def _valid_unicode(value: str, column: str) -> str:
    """Return the text unless it has a lone surrogate, which JSON can write and no tokenizer reads."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"{column} holds half a character, {value[error.start]!r}; write it as UTF-8 text") from None
    return value


def _spelled_list(value: str) -> list:
    """Return the list that a text spells as Python writes it, such as `['a', 'b']` in CSV files of pandas; [] of other texts."""
    if not (value.startswith("[") and value.endswith("]")) or len(value) > _LONGEST_LIST:
        return []
    with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        found = ast.literal_eval(value)
        return found if isinstance(found, list) else []
    return []


_LONGEST_LIST = 100_000
"""Characters of a text above which it is not looked at as a list."""


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
