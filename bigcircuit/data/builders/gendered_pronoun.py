"""Gendered pronoun (Mathwin et al. 2023): the pronoun that a tag question gives a name."""

import random
from typing import Any

from bigcircuit.data.builders.words import MEN, WOMEN, collect_pairs, single_token_words
from bigcircuit.data.pair import Pair

FRAMES = (
    "So {name} is always respectful to everyone, isn't",
    "So {name} is a really great friend, isn't",
    "So {name} is such a good cook, isn't",
    "So {name} is walking to the park now, isn't",
    "So {name} often volunteers for charity work, doesn't",
    "So {name} knows how to listen without judging, doesn't",
    "So {name} likes to read a book at home, doesn't",
    "So {name} works at the station every day, doesn't",
    "So {name} will be at the party tonight, won't",
    "So {name} was at the market this morning, wasn't",
    "So {name} is reading a letter in the garden, isn't",
    "So {name} is the best student at school, isn't",
    "So {name} is buying a hat at the store, isn't",
    "So {name} is always late on Monday, isn't",
    "So {name} sings very well, doesn't",
    "So {name} plays with a ball in the park, doesn't",
    "So {name} wants to see the beach, doesn't",
    "So {name} has a dog and a cat, doesn't",
    "So {name} will come to the house tomorrow, won't",
    "So {name} will bring a cake to the party, won't",
    "So {name} will find the book in the library, won't",
    "So {name} was waiting at the station, wasn't",
    "So {name} was a good friend in school, wasn't",
    "So {name} was happy about the present, wasn't",
    "So {name} can cook a good lunch, can't",
    "So {name} can find the way home, can't",
    "So {name} has been to the hospital, hasn't",
    "So {name} has seen the new restaurant, hasn't",
    "So {name} went to the office this morning, didn't",
    "So {name} gave a flower to everyone, didn't",
)


def draw_pair(rng: random.Random, women: list[str], men: list[str]) -> Pair:
    """Draw a pair; the corrupted prompt has a name of the other gender."""
    frame, woman, man = rng.choice(FRAMES), rng.choice(women), rng.choice(men)
    she, he = (woman, " she"), (man, " he")
    (name, right), (other, wrong) = rng.sample([she, he], 2)
    return Pair(
        clean=frame.format(name=name),
        corrupted=frame.format(name=other),
        answers=(right,),
        wrong_answers=(wrong,),
        template=frame,
    )


def build(tokenizer: Any, size: int, rng: random.Random) -> list[Pair]:
    """Build up to `size` pairs, at most names x frames. Raises UserError if no name is a single token."""
    women = single_token_words(tokenizer, WOMEN, 1, "women's names")
    men = single_token_words(tokenizer, MEN, 1, "men's names")
    return collect_pairs("gendered_pronoun", tokenizer, size, rng, lambda r: draw_pair(r, women, men))
