"""File formats of other tools' circuits: which of them a file has, how it is read and written.

A file in this folder that defines `NAME` is a format; one more format is one more file. A format file holds

- `NAME`: name of the format, for messages and `--help`;
- `RULE`: which heads and MLPs are kept, for `--help` and the metadata of the written circuit file;

where files of the format are read

- `IF_EMPTY`: why a file may keep nothing, and what to do;
- `recognises(data)`: whether the content of a file (parsed JSON, `PtFile` or `CsvFile`) is meant to be of this format. It looks at
  the content, so that no other format's files are recognised; a damaged file of the format is recognised as well, for `read`
  to name the damage;
- `read(data, shapes, source)`: the kept nodes, and scores. Raises UserError, naming `source`, for damage or a circuit of another
  model;

and where circuits are written in the format

- `TO`, `SUFFIX`: what `--to` says, and how the name of the written file ends;
- `write(graph, path)`: writes it, and returns what the user ought to know, a sentence each.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

from bigcircuit.convert.nodes import KeptNodes
from bigcircuit.errors import UserError
from bigcircuit.model.granularity import LayerShape

if TYPE_CHECKING:
    from bigcircuit.convert.graph import GraphCircuit

ReadFormat = Callable[[Any, Sequence[LayerShape], str], KeptNodes]


class ConvertFormat(NamedTuple):
    """How circuits of another tool are read and written; see the docstring of this package."""

    name: str
    rule: str
    if_empty: str = ""
    recognises: Callable[[Any], bool] = lambda _: False
    read: ReadFormat | None = None
    """None for a format that is only written."""
    to: str = ""
    suffix: str = ""
    write: "Callable[[GraphCircuit, Path], list[str]] | None" = None
    """None for a format that is only read."""


def _format(module: ModuleType) -> ConvertFormat:
    parts = {
        name: getattr(module, name.upper()) for name in ("if_empty", "to", "suffix") if hasattr(module, name.upper())
    }
    parts |= {name: getattr(module, name) for name in ("recognises", "read", "write") if hasattr(module, name)}
    return ConvertFormat(name=module.NAME, rule=module.RULE, **parts)


def _registry() -> dict[str, ConvertFormat]:
    """Find the formats of this folder, by name, in the alphabetical order of their files."""
    modules = [
        import_module(f"{__name__}.{one.name}") for one in sorted(iter_modules(__path__), key=lambda one: one.name)
    ]
    return {module.NAME: _format(module) for module in modules if hasattr(module, "NAME")}


CONVERT_FORMATS = _registry()
"""Name -> format."""

COMMON_RULE = "All edges among kept nodes and all neurons of a kept head or MLP are kept; embeddings are never masked."
"""What is kept in every format, for `--help` and the metadata of the written circuit file."""

_READ = [known.name for known in CONVERT_FORMATS.values() if known.read is not None]
KNOWN_FORMATS = f"convert reads {', '.join(_READ)} (`bigcircuit convert --help`)"
"""Which formats are read, for messages."""


def recognise(data: Any, source: str) -> ConvertFormat:
    """Find the format of a parsed file. Raises UserError, naming `source`, unless exactly one format recognises it."""
    found = [known for known in CONVERT_FORMATS.values() if known.read is not None and known.recognises(data)]
    if not found:
        raise UserError(f"{source}: of no known format; {KNOWN_FORMATS}")
    if len(found) > 1:
        raise UserError(
            f"{source}: could be {' or '.join(known.name for known in found)}; write the file again with the tool that found the "
            "circuit"
        )
    return found[0]


def written_format(name: str) -> ConvertFormat:
    """Find the format that `--to` names. Raises UserError for another name."""
    known = {one.to: one for one in CONVERT_FORMATS.values() if one.write is not None}
    if name not in known:
        raise UserError(f"--to {name}: not a format; known: {', '.join(known)}")
    return known[name]
