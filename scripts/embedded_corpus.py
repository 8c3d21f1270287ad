"""The small synthetic English that the embedded model is trained on.

It holds the prompts of four tasks with right answers, drawn by the tasks' own code, and filler sentences over the same
words. Prompts whose hash says so are held out: the model never sees them.
"""

import hashlib
import random
from collections.abc import Iterator
from typing import NamedTuple

from bigcircuit.data.builders import gendered_pronoun, greater_than, induction, ioi
from bigcircuit.data.builders.words import EVENTS, MEN, NOUNS, OBJECTS, PLACES, WOMEN

BEHAVIOURS = ("ioi", "greater_than", "gendered_pronoun", "induction")


class Document(NamedTuple):
    """A text and the number of characters at its end that answer a prompt (0 for filler)."""

    text: str
    answer: int


def held_out(prompt: str) -> bool:
    """Whether a prompt belongs to the tenth that is never trained on."""
    return hashlib.sha256(prompt.encode()).digest()[0] % 10 == 0


def documents(rng: random.Random) -> Iterator[Document]:
    """An endless stream."""
    draws = {
        "ioi": lambda: ioi.draw_pair(rng, WOMEN + MEN, PLACES, OBJECTS),
        "greater_than": lambda: greater_than.draw_pair(rng, EVENTS, list(greater_than.CENTURIES), greater_than.YEARS),
        "gendered_pronoun": lambda: gendered_pronoun.draw_pair(rng, WOMEN, MEN),
        "induction": lambda: induction.draw_pair(rng, NOUNS),
    }
    while True:
        kind = rng.choice([*draws, "induction", "ioi", "filler"])
        if kind == "filler":
            yield Document(filler(rng), 0)
            continue
        pair = draws[kind]()
        if held_out(str(pair.clean)):
            continue
        answer = str(rng.choice(pair.answers))
        yield Document(f"{pair.clean}{answer}", len(answer))


def filler(rng: random.Random) -> str:
    """A sentence that belongs to no task."""
    woman, man = rng.choice(WOMEN), rng.choice(MEN)
    name, pronoun = rng.choice([(woman, "she"), (man, "he")])
    frames = (
        f"{name} went to the {rng.choice(PLACES)} because {pronoun} wanted a {rng.choice(OBJECTS)}.",
        f"{name} saw a {rng.choice(NOUNS)} and a {rng.choice(NOUNS)} near the {rng.choice(PLACES)}.",
        f"The {rng.choice(EVENTS)} began in the year {rng.randint(1100, 1799)}.",
        f"{woman} and {man} had a {rng.choice(NOUNS)} at the {rng.choice(PLACES)}.",
        f"The {rng.choice(NOUNS)} was under the {rng.choice(NOUNS)}.",
    )
    return rng.choice(frames)
