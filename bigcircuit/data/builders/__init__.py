"""Task builders: functions that make pairs from templates and words that fit the model's tokenizer, or from a list of the user.

A file in this folder that defines `build` is a builder with the name of the file, and one that defines `draw_pairs` and `COLUMNS`
builds from the list that `task.path` names; one more task is one more file. `bigcircuit tasks` shows the first line of the file's
docstring.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, NamedTuple

from bigcircuit.config.own_code import entry_point, is_reference, load_entry_point, load_function
from bigcircuit.data.pair import Pair

Builder = Callable[[Any, int, random.Random], list[Pair]]
"""(tokenizer, size, random generator) -> at most `size` pairs with distinct clean prompts; fewer if the task has no more that fit
the tokenizer. Raises UserError if no pair fits."""


class ListBuilder(NamedTuple):
    """Builder of pairs of conversations from a list that the user gives."""

    columns: tuple[str, ...]
    """Columns of the list."""
    draw_pairs: Callable[[Sequence[Mapping[str, Any]], Any, random.Random], Iterator[Pair]]
    """(rows, tokenizer, random generator) -> pairs of conversations, some of which may have prompts of unequal length. Raises
    ValueError for a cell that cannot be read."""


_MODULES = {one.name: import_module(f"{__name__}.{one.name}") for one in iter_modules(__path__)}
BUILDERS: dict[str, Builder] = {
    name: module.build for name, module in sorted(_MODULES.items()) if hasattr(module, "build")
}
"""Name of a task -> its builder."""
LIST_BUILDERS = {
    name: ListBuilder(module.COLUMNS, module.draw_pairs)
    for name, module in sorted(_MODULES.items())
    if hasattr(module, "draw_pairs")
}
"""Name of a task that is built from a list -> its builder."""
DESCRIPTIONS = {name: (_MODULES[name].__doc__ or "").splitlines()[0] for name in sorted({*BUILDERS, *LIST_BUILDERS})}
"""Name of a task -> the first line of its file's docstring."""
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
    return None if found is None else load_entry_point(found)
