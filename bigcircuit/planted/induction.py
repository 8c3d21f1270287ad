"""Pairs of token ids for the textbook induction model, whose circuit is known: head 0 of both of its layers."""

import random
from typing import Any

_TOKENS = 26
_WEAK = (7, 9, 23, 25)
"""Tokens that the model does not always complete when they are repeated, with both heads or without; never used as `a`."""


def induction_pairs(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Make pairs `... a b ... a` -> b. In the corrupted prompt `a` has changed places with a token that is not beside it.

    Other tokens then precede and follow `a`, so both heads differ between the prompts: the head of the first layer, which copies
    the previous token, and the head of the second layer, which attends to the token after `a`. The wrong answer is the token
    that follows `a` in the corrupted prompt.
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
