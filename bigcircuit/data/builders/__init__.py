"""Task builders: pairs made from templates with words that fit the model's tokenizer.

A file in this folder that defines `build` is a builder of its own name; one more task is one more file. The first line of its
docstring is what `bigcircuit tasks` shows.
"""

import random
from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from bigcircuit.data.pair import Pair

Builder = Callable[[Any, int, random.Random], list[Pair]]
"""Tokenizer, number of pairs, random generator -> up to so many pairs. Raises UserError where no pair fits the tokenizer."""


def _registry() -> dict[str, Builder]:
    """Builders by the name of their file, in alphabetical order."""
    modules = {one.name: import_module(f"{__name__}.{one.name}") for one in iter_modules(__path__)}
    return {name: module.build for name, module in sorted(modules.items()) if hasattr(module, "build")}


BUILDERS = _registry()
"""Name of a task -> its builder."""
