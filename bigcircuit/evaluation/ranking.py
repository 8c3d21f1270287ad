"""From scores of nodes to circuits of the best ones, and how faithful those are at each size."""

from collections.abc import Sequence

import torch

from bigcircuit.errors import UserError
from bigcircuit.evaluation.mib import Ranking, faithfulness, ranked
from bigcircuit.evaluation.node_scores import LEVELS, NodeScores, flat, level_size, rows
from bigcircuit.evaluation.result import CurvePoint
from bigcircuit.evaluation.scores import score
from bigcircuit.gates.discretise import Masks, count, discretise
from bigcircuit.gates.granularity import GRANULARITIES, LayerShape
from bigcircuit.streams import Streams
from bigcircuit.tasks.pair import Example
from bigcircuit.tasks.passes import Passes


def circuits_of(
    scores: NodeScores,
    level: str,
    sizes: Sequence[int],
    shapes: Sequence[LayerShape],
    ranking: Ranking = "signed",
) -> list[Masks]:
    """For every size the circuit of the best nodes of a level, all of it open otherwise.

    level: `neuron` (attention and MLP neurons ranked together) or a granularity. ranking: by score or by its absolute value.
    Raises UserError for a level that is not known or not scored.
    """
    if level not in LEVELS:
        raise UserError(f"level {level} is not known; use any of {', '.join(LEVELS)}")
    if missing := [name for name in LEVELS[level] if name not in scores]:
        raise UserError(f"level {level}: the ranking has no scores of {missing[0]}; use any of {', '.join(scores)}")
    # Places from 1 (worst) up, the same for equal scores: gates that are all above 0 close for their size alone.
    values = ranked(flat(scores, level, shapes).double().cpu(), ranking)
    places = torch.unique(values, return_inverse=True)[1] + 1.0
    parts = iter(places.split([GRANULARITIES[name].width(shape) for name in LEVELS[level] for shape in shapes]))
    gates = {name: rows([next(parts) for _ in shapes]) for name in LEVELS[level]}
    asked = "total" if level == "neuron" else level
    return [discretise(gates, shapes, {asked: size}) for size in sizes]


def curve(
    streams: Streams,
    examples: Sequence[Example],
    scores: NodeScores,
    level: str,
    sizes: Sequence[int],
    passes: Passes,
    ranking: Ranking = "signed",
    at_once: int = 8,
) -> list[CurvePoint]:
    """Faithfulness of the best nodes of a level at each size, means over the examples.

    The empty circuit that faithfulness is measured from is the one of size 0: every node of the level closed, the others
    open. at_once: circuits that share a pass.
    """
    shapes = streams.frozen.shapes
    nodes = level_size(level, shapes)
    circuits = circuits_of(scores, level, [*sizes, 0, nodes], shapes, ranking)
    found = score(streams, examples, circuits, passes, at_once)
    kl, difference, match = (
        getattr(found, name).double().mean(1).tolist() for name in ("kl", "logit_difference", "exact_match")
    )
    *_, empty, full = difference
    return [
        CurvePoint(
            fraction=size / nodes,
            size=size,
            neurons=count(circuits[index])["total"],
            kl=kl[index],
            logit_difference=difference[index],
            exact_match=match[index],
            faithfulness=faithfulness(difference[index], empty, full),
        )
        for index, size in enumerate(sizes)
    ]
