"""Docstring (Heimersheim and Janiak 2023): the next parameter that a Python docstring has to describe."""

import random
from typing import Any

from bigcircuit.data.builders.words import NOUNS, collect_pairs, single_token_words
from bigcircuit.data.pair import Pair

PARAMETERS = ("size name file path value count index text data mode level key node list type shape user code field item test "
              "option parent order line state result page group input output").split()  # fmt: skip


def _prompt(name: str, signature: list[str], words: list[str], described: list[str]) -> str:
    lines = [f"def {name}(self, {', '.join(signature)}):", f'    """{words[0]} {words[1]} {words[2]}', ""]
    lines += [f"    :param {parameter}: {first} {second}" for parameter, first, second in
              zip(described, words[3::2], words[4::2], strict=True)]  # fmt: skip
    return "\n".join([*lines, "    :param"])


def draw_pair(rng: random.Random, parameters: list[str], nouns: list[str]) -> Pair:
    """Draw a pair: two parameters before the described parameters, one after the answer; the corrupted signature has others."""
    first, second, third, *others = rng.sample(parameters, 9)
    *before, after = others[:3]
    name, *words = rng.sample(nouns, 8)
    clean = _prompt(name, [*before, first, second, third, after], words, [first, second])
    corrupted = _prompt(name, [*before, *others[3:], after], words, [first, second])
    wrong = (*others[3:], *before, after, first, second)
    return Pair(
        clean=clean,
        corrupted=corrupted,
        answers=(f" {third}",),
        wrong_answers=tuple(f" {word}" for word in wrong),
        template="docstring",
    )


def build(tokenizer: Any, size: int, rng: random.Random) -> list[Pair]:
    """Build up to `size` pairs. Raises UserError if too few parameter names are single tokens."""
    parameters = single_token_words(tokenizer, PARAMETERS, 9, "parameter names")
    nouns = single_token_words(tokenizer, NOUNS, 8, "nouns")
    return collect_pairs("docstring", tokenizer, size, rng, lambda r: draw_pair(r, parameters, nouns))
