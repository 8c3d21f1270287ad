"""Pairs taken the other way round: the corrupted prompt is the one to explain, its own answers are the wrong ones."""

from collections.abc import Sequence

from bigcircuit.evaluation.scores import score
from bigcircuit.streams import Streams
from bigcircuit.tasks.pair import Example
from bigcircuit.tasks.passes import Passes


def both_ways(streams: Streams, examples: Sequence[Example], passes: Passes) -> list[Example]:
    """The examples, and turned round those that show the behaviour that way too: the full model prefers the answers that
    were wrong. A pair that is there both ways already is not doubled. Turned ids are below 0.
    """
    present = {(example.clean, example.corrupted) for example in examples}
    turned = [
        Example(-1 - e.id, e.corrupted, e.clean, e.wrong_answers, e.answers, e.source)
        for e in examples
        if e.wrong_answers and (e.corrupted, e.clean) not in present
    ]
    solved = score(streams, turned, None, passes).accuracy[0] > 0 if turned else []
    return [*examples, *(example for example, right in zip(turned, solved, strict=True) if right)]
