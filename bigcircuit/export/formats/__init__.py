"""Formats of exports: the one table of them.

A file in this folder that defines `NAME` is a format; one more format is one more file. A format file holds

- `NAME`: what `--format` says;
- `DESCRIPTION`: what is written, for the help;
- `LOADS_IN`: which programs load it, for the help and the closing lines;
- `LOADER`: how a fresh process opens it, a name of `LOADERS` in `export/fresh_process.py`;
- `prepare(request)`: the plan of the export, from everything that is known without weights. Raises UserError, with the reason and a
  remedy, for what the format cannot say. Its imports are in its body: the help reads the file and does without torch.
"""

from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:  # the table is read for the help, which does without torch
    from bigcircuit.export.request import ExportRequest, PreparedExport


class ExportFormat(NamedTuple):
    """How circuits are written as models; see the docstring of this package."""

    name: str
    description: str
    loads_in: str
    loader: str
    prepare: "Callable[[ExportRequest], PreparedExport]"


def _format(module: ModuleType) -> ExportFormat:
    return ExportFormat(module.NAME, module.DESCRIPTION, module.LOADS_IN, module.LOADER, module.prepare)


def _registry() -> dict[str, ExportFormat]:
    """Find the formats of this folder, by name, in the alphabetical order of their files."""
    modules = [
        import_module(f"{__name__}.{one.name}") for one in sorted(iter_modules(__path__), key=lambda one: one.name)
    ]
    return {module.NAME: _format(module) for module in modules if hasattr(module, "NAME")}


EXPORT_FORMATS = _registry()
"""Name -> format."""
