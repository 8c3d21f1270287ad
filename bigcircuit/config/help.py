"""The text of --help: every setting with its meaning, type and default, read from the config models themselves."""

from collections.abc import Iterator
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from bigcircuit.config.schema import Config


def show_settings(console: Console, usage: str, settings: type[BaseModel] = Config, prefix: str = "") -> None:
    """Print usage and all settings, section by section; prefix: of their keys."""
    console.print(Text(usage))
    for title, lines in _sections(settings, prefix):
        console.print(Text(f"\n{title}", style="bold"))
        for key, kind, default, meaning in lines:
            console.print(Text.assemble(("  --" + key, "cyan"), f"  {kind}, {default}"))
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
            default = "required" if info.is_required() else f"default {default}"
            own.append((prefix + name, _kind(kind), default, " ".join((info.description or "").split())))
    if own:
        yield f"{prefix.rstrip('.') or 'run'}: {(section.__doc__ or '').strip()}", own
    for kind, longer in nested:
        yield from _sections(kind, longer)


def _kind(annotation: Any) -> str:
    """A type as a person would write it: `int`, `one of float32, bfloat16`, `list of ...`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is None:
        return "any" if annotation is Any else annotation.__name__
    if origin is Annotated:
        return _kind(inner[0])
    if origin is Literal:
        return f"one of {', '.join(inner)}"
    if origin is tuple:
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return f"mapping of {_kind(inner[0])} to {_kind(inner[1])}"
    return " | ".join(_kind(one) for one in inner if one is not NoneType)
