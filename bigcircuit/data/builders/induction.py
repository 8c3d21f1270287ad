"""Induction (Olsson et al. 2022, arXiv 2209.11895): a sequence of random words repeats and the next word is known."""

import random
from typing import Any

from bigcircuit.data.builders.words import NOUNS, collect_pairs, single_token_words
from bigcircuit.data.pair import Pair

SHORTEST, LONGEST = 4, 8
"""Words before the repetition."""


def draw_pair(rng: random.Random, nouns: list[str]) -> Pair:
    """Draw a pair; in the corrupted prompt another word follows the first occurrence of the last word."""
    length = rng.randint(SHORTEST, LONGEST)
    *words, other = rng.sample(nouns, length + 1)
    shown = rng.randint(2, length - 1)
    changed = [*words[:shown], other, *words[shown + 1 :]]
    repeated = words[:shown]
    return Pair(
        clean=" ".join([*words, *repeated]),
        corrupted=" ".join([*changed, *repeated]),
        answers=(f" {words[shown]}",),
        wrong_answers=(f" {other}",),
        template=f"{length} words",
    )


def build(tokenizer: Any, size: int, rng: random.Random) -> list[Pair]:
    """Build up to `size` pairs of single-token words. Raises UserError if the tokenizer has too few."""
    nouns = single_token_words(tokenizer, NOUNS, LONGEST + 1, "nouns")
    return collect_pairs("induction", tokenizer, size, rng, lambda r: draw_pair(r, nouns))
