"""Pairs of token ids for the textbook induction model, whose circuit is known: head 0 of both of its layers."""

import random
from typing import Any

_TOKENS = 26
_WEAK = (7, 9, 23, 25)
"""Tokens that the model does not always complete when they are repeated, with both heads or without; none is `a`."""


def induction_pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """`... a b ... a` -> b. In the corrupted prompt `a` has changed places with a token that is not beside it.

    So `a` is preceded and followed by others: what both heads do differs between the prompts, that of the first layer, which
    notes the token before each, as well as that of the second, which looks for the token after `a`. The wrong answer is what
    follows `a` there.
    """
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        tokens = rng.sample(range(_TOKENS), 7)
        strong = [i for i in range(1, 6) if tokens[i] not in _WEAK]
        place, moved = rng.choice([(i, j) for i in strong for j in range(1, 6) if abs(i - j) > 1])
        changed = tokens.copy()
        changed[place], changed[moved] = tokens[moved], tokens[place]
        rows.append(
            {
                "clean": [*tokens, tokens[place]],
                "corrupted": [*changed, tokens[place]],
                "answers": [[tokens[place + 1]]],
                "wrong_answers": [[tokens[moved + 1]]],
            }
        )
    return rows
