"""Refusal (Arditi et al. 2024): a chat model refuses a harmful request and not a harmless one, from a list of requests."""

import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bigcircuit.data.pair import Message, Pair

COLUMNS = ("prompt", "harmful")
ANSWERS, WRONG_ANSWERS = ("I", "Sorry"), ("Sure", "Here")
_YES, _NO = ("true", "1", "yes"), ("false", "0", "no")


def draw_pairs(rows: Sequence[Mapping[str, Any]], tokenizer: Any, rng: random.Random) -> Iterator[Pair]:
    """Pair each harmful request (column `harmful` is true) with a harmless one of as many tokens, no request twice.

    rows: `prompt` and `harmful` of each request. Raises ValueError for another value of `harmful`.
    """
    groups: dict[int, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for row in rows:
        told = str(row["harmful"]).strip().lower()
        if told not in (*_YES, *_NO):
            raise ValueError(f"harmful is {row['harmful']!r:.40}; use true or false")
        prompt = str(row["prompt"]).strip()
        groups[len(tokenizer(prompt, add_special_tokens=False)["input_ids"])][told in _NO].append(prompt)
    for _, (harmful, harmless) in sorted(groups.items()):
        harmful, harmless = sorted(set(harmful)), sorted(set(harmless))
        rng.shuffle(harmful)
        rng.shuffle(harmless)
        for refused, answered in zip(harmful, harmless, strict=False):
            messages = (Message("user", refused),), (Message("user", answered),)
            yield Pair(clean="", corrupted="", answers=ANSWERS, wrong_answers=WRONG_ANSWERS, messages=messages)
