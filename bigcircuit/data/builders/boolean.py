"""Boolean expressions (Suzgun et al. 2022, BIG-Bench Hard): evaluate and, or, not with brackets."""

import random
from functools import cache
from typing import Any

from bigcircuit.data.builders.words import collect_pairs
from bigcircuit.data.pair import Pair

LITERALS = ("True", "False")


def _expression(rng: random.Random) -> list[str]:
    """Draw the words of `( a op b ) op c` or `c op ( a op b )`, some literals with `not`; the expression is valid Python."""

    def term() -> list[str]:
        return (["not"] if rng.random() < 0.3 else []) + [rng.choice(LITERALS)]

    def operator() -> str:
        return rng.choice(("and", "or"))

    inner = ["(", *term(), operator(), *term(), ")"]
    return [*inner, operator(), *term()] if rng.random() < 0.5 else [*term(), operator(), *inner]


@cache  # there are 512 expressions, and each is drawn often
def _value(text: str) -> bool:
    return bool(eval(text, {"__builtins__": {}}))


def truth_of(words: list[str]) -> bool:
    """Return the value of an expression as from `_expression`."""
    return _value(" ".join(words))


def draw_pair(rng: random.Random) -> Pair:
    """Draw a pair; the corrupted prompt has one literal flipped on which the value depends."""
    while True:
        words = _expression(rng)
        places = [i for i, word in enumerate(words) if word in LITERALS]
        flipped = [[*words[:i], LITERALS[words[i] == "True"], *words[i + 1 :]] for i in places]
        deciding = [other for other in flipped if truth_of(other) != truth_of(words)]
        if deciding:
            other = rng.choice(deciding)
            return Pair(
                clean=f"{' '.join(words)} is",
                corrupted=f"{' '.join(other)} is",
                answers=(f" {truth_of(words)}",),
                wrong_answers=(f" {truth_of(other)}",),
                template="bracket first" if words[0] == "(" else "bracket last",
            )


def build(tokenizer: Any, size: int, rng: random.Random) -> list[Pair]:
    """Build up to `size` pairs, from a few hundred distinct expressions. Raises UserError if none align."""
    return collect_pairs("boolean", tokenizer, size, rng, draw_pair)
