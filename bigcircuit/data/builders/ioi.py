"""Indirect-object identification (Wang et al. 2022, arXiv 2211.00593): who receives, when one of two names repeats."""

import random
from typing import Any

from bigcircuit.data.builders.words import MEN, OBJECTS, PLACES, WOMEN, collect_pairs, single_token_words
from bigcircuit.data.pair import Pair

FRAMES = (
    "When {first} and {second} went to the {place}, {giver} gave a {object} to",
    "Then, {first} and {second} went to the {place}. {giver} gave a {object} to",
    "While {first} and {second} were working at the {place}, {giver} gave a {object} to",
    "After {first} and {second} had lunch at the {place}, {giver} gave a {object} to",
    "Friends {first} and {second} found a {object} at the {place}. {giver} gave it to",
)


def draw_pair(rng: random.Random, names: list[str], places: list[str], objects: list[str]) -> Pair:
    """Draw a pair; the giver is named first (BABA) or second (ABBA). In the corrupted prompt the other person gives."""
    first, second = rng.sample(names, 2)
    giver, receiver = rng.sample([first, second], 2)
    fill = {"first": first, "second": second, "place": rng.choice(places), "object": rng.choice(objects)}
    frame = rng.choice(FRAMES)
    return Pair(
        clean=frame.format(giver=giver, **fill),
        corrupted=frame.format(giver=receiver, **fill),
        answers=(f" {receiver}",),
        wrong_answers=(f" {giver}",),
        template=frame,
    )


def build(tokenizer: Any, size: int, rng: random.Random) -> list[Pair]:
    """Build up to `size` pairs with single-token names. Raises UserError if the tokenizer has too few."""
    names = single_token_words(tokenizer, WOMEN + MEN, 4, "names")
    places = single_token_words(tokenizer, PLACES, 1, "places")
    objects = single_token_words(tokenizer, OBJECTS, 1, "objects")
    return collect_pairs("ioi", tokenizer, size, rng, lambda r: draw_pair(r, names, places, objects))
