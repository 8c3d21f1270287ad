"""Word lists that tasks share, and what makes a candidate pair fit a tokenizer."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from bigcircuit.errors import UserError
from bigcircuit.tasks.encode import encode
from bigcircuit.tasks.pair import Pair

WOMEN = ("Mary Anna Emma Sarah Lucy Alice Rachel Jane Kate Laura Julia Grace Linda Susan Karen Emily Helen Diana Amy Rose "
         "Claire Nancy Lisa Maria").split()  # fmt: skip
MEN = ("John James Tom David Robert Paul Mark Peter Jack Daniel George Henry Adam Kevin Brian Simon Eric Frank Michael Steven "
       "Richard Thomas William Charles").split()  # fmt: skip
PLACES = "store park school garden house station office library market beach hospital restaurant".split()
OBJECTS = "drink book ring ball cake pen letter hat basket present flower cup".split()
NOUNS = ("cat dog tree river stone bird fish horse apple chair table door window road lake hill star moon wind fire snow rain "
         "leaf boat train lamp clock coat shoe knife spoon plate bread milk salt sugar gold iron wood glass paper song").split()  # fmt: skip
EVENTS = "war contract marriage project journey study plan trial campaign siege reign voyage".split()


def single(tokenizer: Any, words: Sequence[str], least: int, what: str) -> list[str]:
    """The words that are one token after a space. Raises UserError if fewer than `least` are."""
    rows = tokenizer([f" {word}" for word in words], add_special_tokens=False)["input_ids"]
    fitting = [word for word, row in zip(words, rows, strict=True) if len(row) == 1]
    if len(fitting) < least:
        raise UserError(
            f"the tokenizer has {len(fitting)} of {len(words)} {what} as single tokens and the task needs {least}; "
            "write a pair file for this model instead"
        )
    return fitting


def collect(
    name: str, tokenizer: Any, size: int, rng: random.Random, draw: Callable[[random.Random], Pair]
) -> list[Pair]:
    """Draw candidates until `size` pairs with distinct clean prompts fit the tokenizer, or new ones stop appearing.

    Raises UserError if none fits.
    """
    pairs: list[Pair] = []
    seen: set[str] = set()
    misses = 0
    while len(pairs) < size and misses < 500:
        pair = draw(rng)
        misses += 1
        if pair.clean in seen:
            continue
        seen.add(str(pair.clean))
        if fits(pair, tokenizer):
            pairs.append(pair._replace(source=f"{name} #{len(pairs) + 1}"))
            misses = 0
    if not pairs:
        raise UserError(f"task {name}: no prompt fits this tokenizer; write a pair file for this model instead")
    return pairs


def fits(pair: Pair, tokenizer: Any) -> bool:
    """Whether clean and corrupted prompt align when tokenised together with every answer."""
    try:
        encode([pair._replace(source="candidate")], tokenizer, max_tokens=4096)
    except UserError:
        return False
    return True
