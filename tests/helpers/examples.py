"""Examples of token ids whose answers have several lengths, begin alike, or begin one another."""

from collections.abc import Sequence

from bigcircuit.data.pair import Example

VOCABULARY = 13
"""Token ids are below this."""


def example(
    number: int,
    clean: Sequence[int],
    answers: Sequence[Sequence[int]],
    wrong: Sequence[Sequence[int]],
    corrupted: Sequence[int] | None = None,
) -> Example:
    """Make an example of token ids; by default every token of the corrupted prompt is the one after that of the clean prompt."""
    other = tuple(corrupted or ((token + 1) % VOCABULARY for token in clean))
    return Example(
        id=number,
        clean=tuple(clean),
        corrupted=other,
        answers=tuple(map(tuple, answers)),
        wrong_answers=tuple(map(tuple, wrong)),
        source=f"x:{number}",
    )


EXAMPLES = [
    example(0, [1, 2, 3], [[4]], [[5]]),
    example(1, [7, 2], [[4, 5, 6]], [[4, 5, 7], [8], [4, 9, 9, 9]]),
    example(2, [9, 8, 7, 6, 5, 4], [[1], [2], [3]], [[10], [11], [12]]),
    example(3, [3], [[4, 5], [6, 5], [6, 7, 8]], [[6, 9], [7, 7]]),
    example(4, [5, 5, 5, 5], [[1, 2], [1, 2, 3, 4]], [[1, 3]]),
    example(5, [5, 6, 5, 5], [[1]], [[2, 3, 4, 5, 6]]),
    example(6, [0, 1], [[1, 2, 3, 4], [1, 2]], [[2], [1, 5]]),
]
