"""Task builders: pairs made from templates with words that fit the model's tokenizer.

A builder takes a tokenizer, a number of pairs and a random generator. One more task is one more file and one more entry.
"""

import random
from collections.abc import Callable
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

BUILDERS: dict[str, Builder] = {
    "arithmetic": arithmetic.build,
    "boolean": boolean.build,
    "docstring": docstring.build,
    "gendered_pronoun": gendered_pronoun.build,
    "greater_than": greater_than.build,
    "induction": induction.build,
    "ioi": ioi.build,
    "subject_verb": subject_verb.build,
}
