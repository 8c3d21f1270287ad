"""Sums and differences of small numbers; the answer may be several tokens long and is scored as a whole."""

import random
from typing import Any

from bigcircuit.data.builders.words import collect_pairs
from bigcircuit.data.pair import Pair


def draw_pair(rng: random.Random) -> Pair:
    """Draw a pair; the corrupted prompt has another second number, and its answer is the wrong answer."""
    sign = rng.choice("+-")
    first, second, other = rng.randint(1, 99), rng.randint(1, 99), rng.randint(1, 99)
    if sign == "-":
        first = max(second, other) + rng.randint(1, 99)  # so that no result is negative
    results = [first + n if sign == "+" else first - n for n in (second, other)]
    return Pair(
        clean=f"{first} {sign} {second} =",
        corrupted=f"{first} {sign} {other} =",
        answers=(f" {results[0]}",),
        wrong_answers=(f" {results[1]}",),
        template=sign,
    )


def build(tokenizer: Any, size: int, rng: random.Random) -> list[Pair]:
    """Build up to `size` pairs whose clean and corrupted prompts have equally many tokens. Raises UserError if none align."""
    return collect_pairs("arithmetic", tokenizer, size, rng, draw_pair, distinct_first=False)
