"""Read values of settings: a word on the command line by the type of the setting's field, and sizes."""

import math
from collections.abc import Mapping
from contextlib import suppress
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BeforeValidator, ValidationInfo

from bigcircuit.config.yaml_text import UnreadableYaml, parse_yaml
from bigcircuit.errors import UserError


def read_value(key: str, text: str, kind: Any) -> Any:
    """Read the word after `--key` by the type `kind` of the field.

    Where the field holds text, the word itself, whatever it looks like (`0123`, `no`, `runs/exp #1`); `null`, or an empty word,
    is no value where the field may have none. In lists and mappings of text all entries are text, and `null` is none. All else
    is read as config files are, so that a setting means the same in both. Raises UserError for YAML that is not valid, and for
    an empty word where there must be a value.
    """
    kinds = alternatives(kind)
    if all(is_text(one) for one in kinds if one is not NoneType):
        if text in ("", "null") and NoneType in kinds:
            return None
        if not text:
            raise UserError(f"--{key} needs a value")
        return text
    if len(kinds) == 1 and (entries := _entries(kinds[0])) and is_text(entries[1]):
        if text == "null":
            return None
        return _read_yaml(key, text, yaml.BaseLoader) if text.lstrip().startswith(entries[0]) else text
    return _read_yaml(key, text, yaml.SafeLoader)


def _entries(kind: Any) -> tuple[str, Any] | None:
    """How a list or a mapping begins in YAML, and the type of its values; None for another type."""
    origin, inner = get_origin(kind), get_args(kind)
    return ("[", inner[0]) if origin is tuple else ("{", inner[1]) if origin is dict else None


def _read_yaml(key: str, text: str, loader: type[Any]) -> Any:
    try:
        return parse_yaml(text, loader)
    except UnreadableYaml as error:
        raise UserError(
            f"--{key}: {text[:60]} is not readable, so not a valid value; lists are written [a, b], mappings {{a: b}}"
        ) from error


def alternatives(kind: Any) -> tuple[Any, ...]:
    """Types that a field may have: those of a union, else the type alone."""
    if get_origin(kind) is Annotated:
        return alternatives(get_args(kind)[0])
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def is_text(kind: Any) -> bool:
    """Check whether values of a type are text: `str`, also with a validator, and choices of words."""
    if get_origin(kind) is Annotated:
        return is_text(get_args(kind)[0])
    return kind is str or (get_origin(kind) is Literal and all(isinstance(word, str) for word in get_args(kind)))


def read_size(value: Any, info: ValidationInfo) -> int | float | None:
    """Read a target. Returns an int for a number of nodes, a float between 0 and 1 for a share; raises ValueError with the key."""
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    is_percentage = isinstance(value, str) and value.endswith("%")
    number = math.nan
    with suppress(ValueError, TypeError):
        # YAML leaves 1e-2 as text.
        number = math.nan if isinstance(value, bool) else float(value[:-1]) / 100 if is_percentage else float(value)
    if 0 < number < 1:
        return number
    key = f"target.{info.field_name}"
    if number == 1 and not is_percentage:
        raise ValueError(
            f"{key} is {value}, which may be one node or all; write 1 for one node, and leave {key} out for all of them"
        )
    if number > 1 and number.is_integer() and not is_percentage:
        return int(number)
    raise ValueError(
        f"{key} is {str(value)[:60]}; give a number of nodes (200), or a share of them above 0 and below 1 (0.1 or 10%)"
    )


Size = Annotated[int | float | None, BeforeValidator(read_size)]
"""A target: a number of nodes, a share of them, or none."""


def open_keys(kinds: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that are mappings, whose own keys anyone may name (`--task.columns.clean x`): prefix -> type of the values."""
    return {f"{key}.": get_args(kind)[1] for key, kind in kinds.items() if get_origin(kind) is dict}
