"""The text of --help: every setting with its meaning, type and default, read from the config models themselves."""

import re
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from bigcircuit.config import Config


def show_settings(console: Console, usage: str, settings: type[BaseModel] = Config) -> None:
    """Print usage and all settings, section by section."""
    console.print(Text(usage))
    for title, lines in _sections(settings, ""):
        console.print(Text(f"\n{title}", style="bold"))
        for key, kind, default, meaning in lines:
            console.print(Text.assemble(("  --" + key, "cyan"), f"  {kind}, default {default}"))
            console.print(Text(f"      {meaning}"))


def _sections(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, list[tuple[str, str, str, str]]]]:
    own = []
    nested = []
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            nested.append((kind, f"{prefix}{name}."))
        else:
            default = str(info.default).replace("'", "") if info.default is not None else "none"
            own.append((prefix + name, _kind(kind), default, " ".join((info.description or "").split())))
    if own:
        yield f"{prefix.rstrip('.') or 'run'}: {(section.__doc__ or '').strip()}", own
    for kind, longer in nested:
        yield from _sections(kind, longer)


def _kind(annotation: Any) -> str:
    """A type as a person would write it: `int`, `one of float32, bfloat16`, `list of ...`."""
    text = (
        annotation.__name__
        if isinstance(annotation, type) and not getattr(annotation, "__args__", ())
        else str(annotation)
    )
    text = re.sub(r"typing\.|, FieldInfo\(.*?\)\]|Annotated\[", "", text).replace(" | None", "")
    text = re.sub(r"Optional\[(.*)\]", r"\1", text)
    text = re.sub(r"tuple\[(.*), \.\.\.\]", r"list of \1", text)
    return re.sub(r"Literal\[(.*?)\]", r"one of \1", text).replace("'", "")
