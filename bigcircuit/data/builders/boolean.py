"""Boolean expressions (Suzgun et al. 2022, BIG-Bench Hard): evaluate and, or, not with brackets."""

import random
from functools import cache
from typing import Any

from bigcircuit.data.builders.words import collect
from bigcircuit.data.pair import Pair

LITERALS = ("True", "False")


def _expression(rng: random.Random) -> list[str]:
    """Words of `( a op b ) op c` with `not` here and there; they are valid Python."""

    def term() -> list[str]:
        return (["not"] if rng.random() < 0.3 else []) + [rng.choice(LITERALS)]

    def operator() -> str:
        return rng.choice(("and", "or"))

    inner = ["(", *term(), operator(), *term(), ")"]
    return [*inner, operator(), *term()] if rng.random() < 0.5 else [*term(), operator(), *inner]


@cache  # there are 512 expressions, and each is met often
def _value(text: str) -> bool:
    return bool(eval(text, {"__builtins__": {}}))


def evaluate(words: list[str]) -> bool:
    """Value of an expression that `_expression` made."""
    return _value(" ".join(words))


def draw(rng: random.Random) -> Pair:
    """One pair; corrupted flips one literal on which the value depends."""
    while True:
        words = _expression(rng)
        places = [i for i, word in enumerate(words) if word in LITERALS]
        flipped = [[*words[:i], LITERALS[words[i] == "True"], *words[i + 1 :]] for i in places]
        deciding = [other for other in flipped if evaluate(other) != evaluate(words)]
        if deciding:
            other = rng.choice(deciding)
            return Pair(
                f"{' '.join(words)} is",
                f"{' '.join(other)} is",
                (f" {evaluate(words)}",),
                (f" {evaluate(other)}",),
                template="bracket first" if words[0] == "(" else "bracket last",
            )


def build(tokenizer: Any, size: int, rng: random.Random) -> list[Pair]:
    """Up to `size` pairs; there are a few hundred distinct expressions. Raises UserError if none align."""
    return collect("boolean", tokenizer, size, rng, draw)
