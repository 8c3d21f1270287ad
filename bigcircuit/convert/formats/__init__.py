"""File formats of other tools' circuits, and which of them a file has.

A file in this folder that defines `NAME` is a format; one more format is one more file. A format file holds

- `NAME`: name of the format, for messages and `--help`;
- `RULE`: which heads and MLPs are kept, for `--help` and the metadata of the written circuit file;
- `IF_EMPTY`: why a file may keep nothing, and what to do;
- `recognises(data)`: whether parsed JSON is meant to be of this format. It looks at the content, so that no other format's files
  are recognised; a damaged file of the format is recognised as well, for `read` to name the damage;
- `read(data, shapes, source)`: the kept nodes. Raises UserError, naming `source`, for damage or another model's circuit.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, NamedTuple

from bigcircuit.convert.nodes import KeptNodes
from bigcircuit.errors import UserError
from bigcircuit.model.granularity import LayerShape


class ConvertFormat(NamedTuple):
    """How circuits of another tool are read from parsed JSON; see the docstring of this package."""

    name: str
    rule: str
    if_empty: str
    recognises: Callable[[Any], bool]
    read: Callable[[Any, Sequence[LayerShape], str], KeptNodes]


def _format(module: ModuleType) -> ConvertFormat:
    return ConvertFormat(module.NAME, module.RULE, module.IF_EMPTY, module.recognises, module.read)


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

KNOWN_FORMATS = f"convert reads {' and '.join(CONVERT_FORMATS)} (`bigcircuit convert --help`)"
"""Which formats there are, for messages."""


def recognise(data: Any, source: str) -> ConvertFormat:
    """Find the format of parsed JSON. Raises UserError, naming `source`, unless exactly one format recognises it."""
    found = [known for known in CONVERT_FORMATS.values() if known.recognises(data)]
    if not found:
        raise UserError(f"{source}: JSON of no known format; {KNOWN_FORMATS}")
    if len(found) > 1:
        raise UserError(
            f"{source}: could be {' or '.join(known.name for known in found)}; write the file again with the tool that found the "
            "circuit"
        )
    return found[0]
