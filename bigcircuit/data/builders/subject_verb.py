"""Subject-verb agreement across an attractor (Linzen et al. 2016): the verb agrees with the subject, not its neighbour."""

import random
from typing import Any

from bigcircuit.data.builders.words import collect
from bigcircuit.data.pair import Pair

NOUNS = {"key": "keys", "book": "books", "boy": "boys", "girl": "girls", "dog": "dogs", "car": "cars", "house": "houses",
         "teacher": "teachers", "doctor": "doctors", "student": "students", "farmer": "farmers", "tree": "trees",
         "friend": "friends", "picture": "pictures", "letter": "letters", "table": "tables"}  # fmt: skip
LINKS = ("near", "behind", "beside", "above", "by", "next to")
VERBS = ((" is", " are"), (" was", " were"), (" has", " have"))


def draw(rng: random.Random) -> Pair:
    """One pair; corrupted has the subject in the other number."""
    subject, attractor = rng.sample(sorted(NOUNS), 2)
    forms = [(subject, 0), (NOUNS[subject], 1)]
    (shown, number), (changed, _) = rng.sample(forms, 2)
    link = rng.choice(LINKS)
    rest = f" {link} the {rng.choice([attractor, NOUNS[attractor]])}"
    verbs = rng.choice(VERBS)
    return Pair(f"The {shown}{rest}", f"The {changed}{rest}", (verbs[number],), (verbs[1 - number],), template=link)


def build(tokenizer: Any, size: int, rng: random.Random) -> list[Pair]:
    """Up to `size` pairs; only nouns whose singular and plural have as many tokens survive. Raises UserError if none."""
    return collect("subject_verb", tokenizer, size, rng, draw)
