"""Choices of a setting that are the entries of a table."""

from collections.abc import Iterable, Mapping
from typing import Any

from pydantic_core import core_schema


class OneOf:
    """Choices of a text field, read from a table: as metadata of an `Annotated[str, ...]` it works like a Literal."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)

    def __get_pydantic_core_schema__(self, _source: Any, _handler: Any) -> core_schema.CoreSchema:
        return core_schema.literal_schema(list(self.names))


def described(choices: Mapping[str, str], before: str = "", after: str = "") -> str:
    """Description of a field whose choices are the entries of a table: name -> what it is."""
    return f"{before}{'; '.join(f'`{name}`: {text}' for name, text in choices.items())}{after}"
