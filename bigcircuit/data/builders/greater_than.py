"""Greater-than (Hanna et al. 2023, arXiv 2305.00586): a period ends later in the century than it began."""

import random
from typing import Any

from bigcircuit.data.builders.words import EVENTS, collect_pairs, single_token_words
from bigcircuit.data.pair import Pair
from bigcircuit.errors import UserError

FRAME = "The {event} lasted from the year {century}{year} to the year {century}"
CENTURIES = tuple(range(11, 18))
YEARS = [f"{year:02d}" for year in range(100)]


def draw_pair(rng: random.Random, events: list[str], centuries: list[int], years: list[str]) -> Pair:
    """Draw a pair; later years are right, the year itself and earlier years are wrong. The corrupted prompt begins in year 01."""
    event, century = rng.choice(events), rng.choice(centuries)
    year = rng.choice([y for y in years if "02" <= y <= "98"])
    return Pair(
        clean=FRAME.format(event=event, century=century, year=year),
        corrupted=FRAME.format(event=event, century=century, year="01"),
        answers=tuple(y for y in years if y > year),
        wrong_answers=tuple(y for y in years if y <= year),
        template=f"century {century}",
    )


def single_years(tokenizer: Any, century: int) -> list[str]:
    """Return the two-digit years that are a token of their own after a century."""
    prefix = tokenizer(f" year {century}", add_special_tokens=False)["input_ids"]
    rows = tokenizer([f" year {century}{year}" for year in YEARS], add_special_tokens=False)["input_ids"]
    return [year for year, row in zip(YEARS, rows, strict=True) if row[:-1] == prefix]


def build(tokenizer: Any, size: int, rng: random.Random) -> list[Pair]:
    """Build up to `size` pairs. Raises UserError if the tokenizer does not split years into two tokens."""
    events = single_token_words(tokenizer, EVENTS, 1, "events")
    years = {century: single_years(tokenizer, century) for century in CENTURIES}
    usable = [century for century in CENTURIES if "01" in years[century] and len(years[century]) >= 50]
    if not usable:
        raise UserError(
            "task greater_than: the tokenizer does not write years as two tokens, 17|32; write a pair file for this model instead"
        )

    def draw_one(r: random.Random) -> Pair:
        century = r.choice(usable)
        return draw_pair(r, events, [century], years[century])

    return collect_pairs("greater_than", tokenizer, size, rng, draw_one)
