"""Subject-verb agreement across an attractor (Linzen et al. 2016): the verb agrees with the subject, not its neighbour."""

import random
from typing import Any

from bigcircuit.data.builders.words import collect_pairs
from bigcircuit.data.pair import Pair

PLURALS = {"key": "keys", "book": "books", "boy": "boys", "girl": "girls", "dog": "dogs", "car": "cars", "house": "houses",
         "teacher": "teachers", "doctor": "doctors", "student": "students", "farmer": "farmers", "tree": "trees",
         "friend": "friends", "picture": "pictures", "letter": "letters", "table": "tables"}  # fmt: skip
LINKS = ("near", "behind", "beside", "above", "by", "next to")
VERB_FORMS = ((" is", " are"), (" was", " were"), (" has", " have"))


def draw_pair(rng: random.Random) -> Pair:
    """Draw a pair; the corrupted prompt has the subject in the other number."""
    subject, attractor = rng.sample(sorted(PLURALS), 2)
    forms = [(subject, 0), (PLURALS[subject], 1)]
    (shown, number), (changed, _) = rng.sample(forms, 2)
    link = rng.choice(LINKS)
    rest = f" {link} the {rng.choice([attractor, PLURALS[attractor]])}"
    verbs = rng.choice(VERB_FORMS)
    return Pair(
        clean=f"The {shown}{rest}",
        corrupted=f"The {changed}{rest}",
        answers=(verbs[number],),
        wrong_answers=(verbs[1 - number],),
        template=link,
    )


def build(tokenizer: Any, size: int, rng: random.Random) -> list[Pair]:
    """Build up to `size` pairs, with nouns whose singular and plural have equally many tokens. Raises UserError if none align."""
    return collect_pairs("subject_verb", tokenizer, size, rng, draw_pair)
