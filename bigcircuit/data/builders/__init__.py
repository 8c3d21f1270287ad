"""Task builders: functions that make pairs from templates and words that fit the model's tokenizer.

A file in this folder that defines `build` is a builder with the name of the file; one more task is one more file. `bigcircuit
tasks` shows the first line of the file's docstring.
"""

import random
from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from bigcircuit.config.own_code import entry_point, is_reference, load_function
from bigcircuit.data.pair import Pair

Builder = Callable[[Any, int, random.Random], list[Pair]]
"""(tokenizer, size, random generator) -> at most `size` pairs with distinct clean prompts; fewer if the task has no more that fit
the tokenizer. Raises UserError if no pair fits."""


def _registry() -> dict[str, Builder]:
    """Import the files of this folder. Returns their builders by file name, in alphabetical order."""
    modules = {one.name: import_module(f"{__name__}.{one.name}") for one in iter_modules(__path__)}
    return {name: module.build for name, module in sorted(modules.items()) if hasattr(module, "build")}


BUILDERS = _registry()
"""Name of a task -> its builder."""
ENTRY_POINTS = "bigcircuit.tasks"
"""Group of entry points in which packages declare task builders of their own."""


def find_builder(name: str) -> Callable[..., Any] | None:
    """Return the builder of a task: of this folder, of an installed package, or a function `module:function`; None if unknown.

    Builders from elsewhere may return mappings with the columns of a pair file in place of pairs. Raises UserError for a module
    that is not allowed, see config/own_code.py.
    """
    if name in BUILDERS:
        return BUILDERS[name]
    if is_reference(name):
        return load_function(name, "task.name")
    found = entry_point(ENTRY_POINTS, name)
    return None if found is None else found.load()
