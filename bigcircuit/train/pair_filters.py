"""Choose pairs by what the full model does on them: solved pairs, and pairs that can be swapped."""

from collections.abc import Sequence

from bigcircuit.ablation.ablation import ZERO
from bigcircuit.config.schema import Config
from bigcircuit.data.dataset import TaskData
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.errors import UserError
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.score import score
from bigcircuit.model.sites import FrozenModel


def keep_solved(config: Config, frozen: FrozenModel, data: TaskData, micro_batches: MicroBatches) -> TaskData:
    """Leave out the pairs that the full model gets wrong, where `task.keep` is `solved`. Raises UserError if none is left."""
    if config.task.keep == "all":
        return data
    kept, before = {}, sum(map(len, data.splits.values()))
    with Streams(frozen, ZERO) as streams:
        for name, examples in data.splits.items():
            right = _solved(streams, examples, micro_batches, f"solved pairs of {name}")
            kept[name] = [example for example, solved in zip(examples, right, strict=True) if solved]
    after = sum(map(len, kept.values()))
    micro_batches.progress.print_line(
        f"task.keep solved: {before - after} of {before} pairs left out, the full model gets them wrong"
    )
    if not kept["train"] or not kept["test"]:
        raise UserError("task.keep solved leaves no pair to train or test on; the model does not show this behaviour")
    return data._replace(splits=kept, unsolved=before - after)


def swap_pairs(streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches) -> list[Example]:
    """Add swapped examples: the corrupted prompt is explained, and the wrong answers are right.

    Only where the full model prefers these answers after the corrupted prompt, and where the swapped pair is not among the
    examples already. Ids of swapped examples are below 0.
    """
    present = {(example.clean, example.corrupted) for example in examples}
    turned = [
        e._replace(id=-1 - e.id, clean=e.corrupted, corrupted=e.clean, answers=e.wrong_answers, wrong_answers=e.answers)
        for e in examples
        if e.wrong_answers and (e.corrupted, e.clean) not in present
    ]
    solved = _solved(streams, turned, micro_batches, "swapped pairs")
    return [*examples, *(example for example, right in zip(turned, solved, strict=True) if right)]


def _solved(streams: Streams, examples: Sequence[Example], micro_batches: MicroBatches, phase: str) -> list[float]:
    """Score the full model: 1 for each example on which it prefers a right answer, else 0. phase: see `score`."""
    return score(streams, examples, None, micro_batches, phase=phase)["accuracy"][0].tolist() if examples else []
