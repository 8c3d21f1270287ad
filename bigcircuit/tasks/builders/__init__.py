"""Task builders: pairs made from templates with words that fit the model's tokenizer.

A builder takes a tokenizer, a number of pairs and a random generator. One more task is one more file and one more entry.
"""

import random
from collections.abc import Callable
from types import ModuleType
from typing import Any

from bigcircuit.tasks.builders import (
    arithmetic,
    boolean,
    docstring,
    gendered_pronoun,
    greater_than,
    induction,
    ioi,
    subject_verb,
)
from bigcircuit.tasks.pair import Pair

Builder = Callable[[Any, int, random.Random], list[Pair]]


def _registry(*modules: ModuleType) -> dict[str, Builder]:
    """Builders by the name of their file."""
    found: dict[str, Builder] = {}
    for module in modules:
        name = module.__name__.rpartition(".")[2]
        if name in found:
            raise ValueError(f"task {name!r} is entered twice in tasks/builders/__init__.py; remove one")
        found[name] = module.build
    return found


BUILDERS = _registry(
    arithmetic,
    boolean,
    docstring,
    gendered_pronoun,
    greater_than,
    induction,
    ioi,
    subject_verb,
)
