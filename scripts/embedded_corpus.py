"""Corpus of the embedded model: a small synthetic English.

The corpus has prompts of four tasks with right answers, drawn by the tasks' own builders, and filler sentences over the same words.
Prompts are held out by their hash: the model is never trained on them.
"""

import hashlib
import random
from collections.abc import Iterator
from typing import NamedTuple

from bigcircuit.data.builders import gendered_pronoun, greater_than, induction, ioi
from bigcircuit.data.builders.words import EVENTS, MEN, NOUNS, OBJECTS, PLACES, WOMEN

BEHAVIOURS = ("ioi", "greater_than", "gendered_pronoun", "induction")


class Document(NamedTuple):
    """Text of the corpus."""

    text: str
    answer: int
    """Number of characters at the end that answer a prompt; 0 for filler."""


def held_out(prompt: str) -> bool:
    """Return whether a prompt is among the tenth of all prompts that is never trained on."""
    return hashlib.sha256(prompt.encode()).digest()[0] % 10 == 0


def documents(rng: random.Random) -> Iterator[Document]:
    """Yield documents without end."""
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
    """Draw a sentence that is no task's prompt."""
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
