"""Choose pairs by what the full model does on them: solved pairs, and pairs that can be swapped."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

from bigcircuit.ablation.ablation import ZERO
from bigcircuit.config.schema import Config
from bigcircuit.data.dataset import TaskData, text_data
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.data.text import samples
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.forward.reference_logits import Targets
from bigcircuit.forward.samples import sample_documents
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.logit_metrics import contrast
from bigcircuit.metrics.score import score
from bigcircuit.model.sites import FrozenModel

_LEAST_SOLVED = 0.8
"""Share of solved pairs below which the user is warned."""


class Solved(NamedTuple):
    """How far the full model shows the behaviour that is asked for."""

    right: int
    """Pairs on which it prefers the right answers."""
    pairs: int
    logit_difference: float
    """Mean over the pairs."""

    def lines(self) -> Iterator[str]:
        """Yield the sentence that says so, and a warning where too few pairs are solved."""
        yield (
            f"the full model prefers the right answer on {self.right} of {self.pairs} pairs "
            f"(mean logit difference {self.logit_difference:.1f})"
        )
        if self.right < _LEAST_SOLVED * self.pairs:
            yield (
                f"warning: that is less than {_LEAST_SOLVED:.0%}, and a circuit is trained to do what the full model does, right "
                "or wrong; set task.keep to solved to leave out the pairs that it gets wrong"
            )


def count_solved(targets: Sequence[Targets], micro_batches: MicroBatches) -> Solved:
    """Count the pairs that the full model solves, by logits that are there already: without a pass, and on one rank.

    Each pair is counted once, and swapped pairs not at all. Of targets that are not scored in full, for training, pairs with
    answers of several tokens are not counted, because how likely a whole answer is cannot be told.
    """
    alone = replace(micro_batches, ranks=Ranks())
    found: dict[int, float] = {}
    for target in targets:
        new = [e for e in target.examples if e.id >= 0 and e.id not in found and (target.full or _has_single_tokens(e))]
        for micro_batch in alone.iterate(new, full=target.full):
            logits = target.references.own(micro_batch).unsqueeze(0)
            differences = contrast(logits, micro_batch.batch).logit_difference[0].tolist()
            found |= dict(zip((e.id for e in micro_batch.examples), differences, strict=True))
    return Solved(sum(value > 0 for value in found.values()), len(found), fmean(found.values()))


def _has_single_tokens(example: Example) -> bool:
    return all(len(answer) == 1 for answer in (*example.answers, *example.wrong_answers))


def complete_data(config: Config, frozen: FrozenModel, data: TaskData, micro_batches: MicroBatches) -> TaskData:
    """Do what the data of a task needs the model for: write samples, each once, or leave out pairs. Raises UserError."""
    task = config.task
    if not task.text.generate:
        return keep_solved(config, frozen, data, micro_batches)
    start = data.pairs[0].clean[0]
    assert isinstance(start, int)
    written = sample_documents(frozen, start, task.text.generate, task.text.window, task.seed, micro_batches)
    return text_data(task, samples(list(dict.fromkeys(written))), frozen.model.config.get_text_config(decoder=True))


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
