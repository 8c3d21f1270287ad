"""Word lists that tasks share, and the check whether a pair fits a tokenizer."""

import random
from collections.abc import Callable, Sequence
from typing import Any

from bigcircuit.data.pair import Pair
from bigcircuit.data.tokenize import tokenize_pairs
from bigcircuit.errors import UserError

WOMEN = ("Mary Anna Emma Sarah Lucy Alice Rachel Jane Kate Laura Julia Grace Linda Susan Karen Emily Helen Diana Amy Rose "
         "Claire Nancy Lisa Maria").split()  # fmt: skip
MEN = ("John James Tom David Robert Paul Mark Peter Jack Daniel George Henry Adam Kevin Brian Simon Eric Frank Michael Steven "
       "Richard Thomas William Charles").split()  # fmt: skip
PLACES = "store park school garden house station office library market beach hospital restaurant".split()
OBJECTS = "drink book ring ball cake pen letter hat basket present flower cup".split()
NOUNS = (
    "cat dog tree river stone bird fish horse apple chair table door window road lake hill star moon wind fire snow rain "
    "leaf boat train lamp clock coat shoe knife spoon plate bread milk salt sugar gold iron wood glass paper song"
).split()
EVENTS = "war contract marriage project journey study plan trial campaign siege reign voyage".split()


def single_token_words(tokenizer: Any, words: Sequence[str], least: int, what: str) -> list[str]:
    """Return the words that are a single token inside a sentence. Raises UserError if fewer than `least` are.

    what: plural noun for the words, in the error message.
    """
    # Tokenised after another word, because some tokenizers add a space in front of every text.
    before, *rows = tokenizer(["the", *(f"the {word}" for word in words)], add_special_tokens=False)["input_ids"]
    fitting = [word for word, row in zip(words, rows, strict=True) if row[:-1] == before]
    if len(fitting) < least:
        missing = [word for word in words if word not in fitting]
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(
            f"the tokenizer has {len(fitting)} of {len(words)} {what} as single tokens and the task needs {least} "
            f"(missing: {', '.join(missing[:3])}{more}); write a pair file for this model instead"
        )
    return fitting


def collect_pairs(
    name: str,
    tokenizer: Any,
    size: int,
    rng: random.Random,
    draw_pair: Callable[[random.Random], Pair],
    distinct_first: bool = True,
) -> list[Pair]:
    """Draw pairs until `size` pairs with distinct clean prompts fit the tokenizer, or no new pair has appeared for many draws.

    name: of the task. distinct_first: whether right and wrong answers must differ in their first token. Raises UserError if no
    pair fits.
    """
    pairs: list[Pair] = []
    seen: set[str] = set()
    misses, reason = 0, ""
    # The more pairs there are already, the more draws it takes to find one of the few that are left.
    while len(pairs) < size and misses < 500 + 30 * len(pairs):
        pair = draw_pair(rng)
        misses += 1
        if pair.clean in seen:
            continue
        seen.add(str(pair.clean))
        problem = alignment_problem(pair, tokenizer, distinct_first)
        if problem:
            reason = problem
        else:
            pairs.append(pair._replace(source=f"{name} #{len(pairs) + 1}"))
            misses = 0
    if not pairs:
        raise UserError(
            f"task {name}: no prompt fits this tokenizer ({reason}); write a pair file for this model instead"
        )
    return pairs


def alignment_problem(pair: Pair, tokenizer: Any, distinct_first: bool) -> str:
    """Return why a pair cannot be scored with this tokenizer, or "" if it can. distinct_first: as for `collect_pairs`."""
    source = repr(pair.clean)
    try:
        example = tokenize_pairs([pair._replace(source=source)], tokenizer, max_tokens=4096)[0]
    except UserError as error:
        return str(error).partition(";")[0]
    shared = {ids[0] for ids in example.answers} & {ids[0] for ids in example.wrong_answers}
    if distinct_first and shared:
        return f"{source}: right and wrong answers begin with the same token"
    return ""
