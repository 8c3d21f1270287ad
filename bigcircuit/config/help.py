"""Print the help of verbs: made of the table of verbs, and of the settings' own types, defaults and descriptions."""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from rich.console import Console
from rich.text import Text

from bigcircuit.config.schema import Config
from bigcircuit.config.values import alternatives
from bigcircuit.config.verbs import Settings, Verb
from bigcircuit.errors import UserError

_WIDEST = 100
"""Columns, beyond which lines are hard to read."""

_VALUES = "Text is taken as it is typed; numbers, true, [a, b] and {a: b} are YAML; null is none."


class HelpSection(NamedTuple):
    """Settings that are shown together."""

    name: str
    meaning: str
    fields: Mapping[str, FieldInfo]
    """By dotted key."""


def show_verbs(console: Console, verbs: Mapping[str, Verb]) -> None:
    """Print all verbs, a line each."""
    column = max(map(len, verbs)) + 4
    _show(console, "usage: bigcircuit VERB [--OPTION VALUE ...]\n")
    _show(console, "Find circuits in large language models by training masks over frozen weights.\n")
    for verb in verbs.values():
        _show(console, verb.name.ljust(column - 2) + verb.summary, 2, column, head=verb.name)
    _show(console, "\nExamples and options of a verb: bigcircuit VERB --help\nVersions: bigcircuit --version")


def show_help(console: Console, verb: Verb, settings: Settings, topic: str, notes: Sequence[str] = ()) -> None:
    """Print what a verb does, examples, and what can be set.

    topic: a section of its settings, or a single setting, `all` for all sections, or empty for the settings that matter most.
    notes: paragraphs about the verb. Raises UserError for another topic, unless the verb takes names and the topic can be one.
    """
    sections = list(help_sections(verb, settings))
    chosen = _chosen(sections, topic) if topic else []
    if topic and not chosen and not verb.names:
        names = ", ".join(section.name for section in sections if "." not in section.name)
        there = f"its sections are {names}, and all" if names else "it has no settings"
        raise UserError(f"--help {topic}: {verb.name} has no section {topic}; {there}")
    if chosen:
        for number, section in enumerate(chosen):
            _show_title(console, f"{section.name}: {section.meaning}", first=number == 0)
            for key, field in section.fields.items():
                _show_setting(console, key, field, _one_line(field.description), verb.defaults.get(key))
        return
    _show(console, f"usage: bigcircuit {verb.name} {verb.usage}".rstrip(), 0, 11)
    _show(console, f"\n{verb.about}")
    _show_title(console, "Examples")
    for words, meaning in verb.examples.items():
        _show(console, f"# {meaning}", 2, 4, style="dim")
        console.print(f"  bigcircuit {verb.name} {words}".rstrip(), markup=False, soft_wrap=True)
    fields = {key: field for section in sections for key, field in section.fields.items()}
    if verb.settings:
        _show_title(console, "Settings" if len(verb.settings) == len(fields) else "Settings that matter most")
        for key in verb.settings:
            meaning = _short(_one_line(fields[key].description))
            _show_setting(console, key, fields[key], meaning, verb.defaults.get(key))
    if verb.options:
        _show_title(console, "Options")
        for option in verb.options:
            _show(console, f"--{option.name} {option.value}".rstrip(), 2, head=f"--{option.name}")
            _show(console, option.meaning, 6)
    for note in notes:
        _show(console, f"\n{note}")
    if len(verb.settings) < len(fields):
        _show(console, f"\n{_VALUES}\n\nAll settings: bigcircuit {verb.name} --help all")
        names = ", ".join(section.name for section in sections if "." not in section.name)
        _show(console, f"One section:  bigcircuit {verb.name} --help SECTION, of {names}", 0, 14)


def help_sections(verb: Verb, settings: Settings) -> Iterator[HelpSection]:
    """Divide all settings of a verb into sections; a key that two sections have is shown in the first, which gets it."""
    seen: set[str] = set()
    for section, prefix in settings.items():
        for name, meaning, fields in _walk(section, prefix, "run" if section is Config else verb.name):
            left = {key: field for key, field in fields.items() if key not in seen}
            seen |= left.keys()
            if left:
                yield HelpSection(name, meaning, left)


def _walk(section: type[BaseModel], prefix: str, top: str) -> Iterator[HelpSection]:
    nested = {
        name: info.annotation
        for name, info in section.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
    }
    own = {prefix + name: info for name, info in section.model_fields.items() if name not in nested}
    yield HelpSection(prefix.rstrip(".") or top, _one_line(section.__doc__), own)
    for name, kind in nested.items():
        yield from _walk(kind, f"{prefix}{name}.", top)


def _chosen(sections: Sequence[HelpSection], topic: str) -> list[HelpSection]:
    """Return the sections of a name or below it, all for `all`, and settings by their key or its last part."""
    chosen = [one for one in sections if topic == "all" or f"{one.name}.".startswith(f"{topic}.")]
    for one in sections:
        named = {key: field for key, field in one.fields.items() if topic in (key, key.rpartition(".")[2])}
        chosen += [one._replace(fields=named)] if named and one not in chosen else []
    return chosen


def _show_title(console: Console, text: str, first: bool = False) -> None:
    if not first:
        console.print()
    _show(console, text, style="bold")


def _show_setting(console: Console, key: str, field: FieldInfo, meaning: str, other: str | None) -> None:
    """Print a setting. other: what its default is with this verb, if not that of the field."""
    default = "required" if field.is_required() else f"default {other or written(field.default)}"
    _show(console, f"--{key}  {kind_name(field.annotation, field.metadata)}, {default}", 2, 6, head=f"--{key}")
    _show(console, meaning, 6)


def _show(
    console: Console, text: str, indent: int = 0, hang: int | None = None, head: str = "", style: str = ""
) -> None:
    """Print text, wrapped at words. indent, hang: columns before the first line and the others; head: its start, in colour."""
    width = min(console.width, _WIDEST)
    further = " " * (indent if hang is None else hang)
    lines = [
        textwrap.fill(line, width, initial_indent=" " * indent, subsequent_indent=further,
                      break_on_hyphens=False, break_long_words=False)
        for line in text.split("\n")
    ]  # fmt: skip
    shown = Text("\n".join(lines), style=style)
    shown.stylize("cyan", indent, indent + len(head))
    console.print(shown, soft_wrap=True)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())


def _short(text: str) -> str:
    """Shorten a description to its first sentence, and that to about two lines."""
    return textwrap.shorten(re.split(r"(?<=\.) (?=[A-Z`])", text, maxsplit=1)[0], 146, placeholder=" ...")


def written(value: Any) -> str:
    """Write a default as it is typed on the command line."""
    if value is None:
        return "none"
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(map(written, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def kind_name(kind: Any, metadata: Sequence[Any] = ()) -> str:
    """Name a type as a person would: `int`, `one of float32, bfloat16`, `list of ...`. metadata: of the field, with its choices."""
    choices = [names for one in metadata if (names := getattr(one, "names", None))]
    if choices:
        return f"one of {', '.join(choices[0])}"
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return kind_name(inner[0], inner[1:])
    if origin is Literal:
        return f"one of {', '.join(inner)}" if len(inner) > 1 else inner[0]
    if origin is tuple:
        return f"list of {kind_name(inner[0])}"
    if origin is dict:
        return f"mapping of {kind_name(inner[0])} to {kind_name(inner[1])}"
    if origin is None:
        return "any" if kind is Any else kind.__name__
    return " | ".join(kind_name(one) for one in alternatives(kind) if one is not NoneType)
