"""Plain values of settings: what no text and no number of a setting may be, and how a value is shown in a message."""

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from bigcircuit.errors import UserError

_LARGEST_INTEGER, _LARGEST_FLOAT = 2**63 - 1, 3.4e38
"""Largest whole number of 64 bits; largest number of float32."""
_NAME_BYTES, _PATH_BYTES, _SHOWN = 255, 4095, 60
"""Most bytes of the name of a file, and of a path; characters of a value in a message."""


def shown(value: Any) -> str:
    """Write the beginning of a value as JSON, or as Python does where JSON cannot."""
    try:
        return json.dumps(value, default=str)[:_SHOWN]
    except (ValueError, RecursionError, TypeError):
        return f"a {type(value).__name__}"


_FOLDERS = re.compile(
    r"""(?:^|(?<=["'=]))(?:~|[A-Za-z]:)?/(?:[^/"'\n:;]+/)+(?=[^/\s"'])"""  # a whole value, which may hold spaces
    r"""|(?<![\w.~…/:+-])(?:~|[A-Za-z]:)?/(?:[^/\s"',:;()\[\]{}]+/)+(?=[^/\s"'])"""  # within a sentence
)


def without_folders(text: str) -> str:
    """Replace the folders of absolute paths in text by `…/`: `…/llama` of `/home/me/llama`. Relative paths and addresses stay."""
    return _FOLDERS.sub("…/", text)


def value_problem(value: Any) -> str | None:
    """Say what is wrong with a text or number, wherever it is in a value; None if nothing is."""
    if isinstance(value, str):
        return name_problem(value)
    if isinstance(value, int):
        return "is beyond 64 bits" if abs(value) > _LARGEST_INTEGER else None
    if isinstance(value, float):
        return None if abs(value) <= _LARGEST_FLOAT else f"is {value:g}, which is no number that float32 holds"
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    return next(filter(None, map(value_problem, value)), None) if isinstance(value, (list, tuple)) else None


def name_problem(text: str) -> str | None:
    """Say why text is neither a name nor a path; None if it is one."""
    if not text:
        return "is empty"
    if problem := text_problem(text):
        return problem
    content = text.encode()
    if len(content) > _PATH_BYTES or any(len(part) > _NAME_BYTES for part in content.split(os.sep.encode())):
        return f"is longer than names may be ({_NAME_BYTES} bytes)"
    return None


def text_problem(text: str) -> str | None:
    """Say why text cannot be written to a file; None if it can."""
    try:
        content = text.encode()
    except UnicodeEncodeError:
        return "is not UTF-8 text"
    return "has a null character" if b"\0" in content else None


def check_name(text: str, source: str) -> None:
    """Raises UserError, naming `source`, for text that can be no name of a file."""
    if problem := name_problem(text):
        raise UserError(f"{source}: {shown(text)} {problem}")
