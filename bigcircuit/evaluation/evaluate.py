"""`bigcircuit evaluate`: the whole evaluation, top to bottom."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bigcircuit.config.schema import Config
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import OutOfMemory
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.console import show_evaluation, with_verdict
from bigcircuit.evaluation.plan import plan_evaluation
from bigcircuit.evaluation.runner import EvaluationRunner, score_full_model
from bigcircuit.model.load import load_frozen
from bigcircuit.model.zero3 import read_deepspeed
from bigcircuit.results.evaluation import Evaluation, save_result
from bigcircuit.runtime.host_memory import give_freed_memory_back, out_of_memory, saves_memory
from bigcircuit.runtime.progress import ProgressDisplay

FILE = "evaluation.json"


def evaluate_circuits(
    names: Sequence[str],
    settings: EvaluationSettings,
    ranks: Ranks,
    *,
    config: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Evaluate the circuits of run folders and files and write evaluation.json, once more after every ablation.

    config: names model and task of circuit files; overrides: dotted keys over every config. Raises UserError for what the user can
    mend, before weights are loaded where it can be known.
    """
    display, started = ProgressDisplay(ranks.first, ranks.note), time.monotonic()
    asked = plan_evaluation(names, settings, ranks, config, overrides or {})
    sharding = read_deepspeed(asked.base.deepspeed)
    if saves_memory(asked.base, sharding is not None):
        give_freed_memory_back()
    with _explained(asked.base, settings):
        frozen = load_frozen(asked.base.model, ranks.device, sharding)
        grounds = {key: score_full_model(asked, key, frozen, display) for key in asked.tasks}
        display.say(
            f"{len(asked.subjects)} circuit(s), {len(grounds)} task(s), ablations: {', '.join(asked.ablations)}"
        )
        work = EvaluationRunner(asked, frozen, grounds, display)
        for name in asked.ablations:
            work.under(name)
            result = with_verdict(work.result(time.monotonic() - started))
            if ranks.first:
                save_result(result, asked.folder / FILE)
    if ranks.first:
        show_evaluation(result, display)
        from bigcircuit.report.render import render_run  # its figures take a second to load

        display.say(f"{result.seconds} s; {asked.folder / FILE}; see {render_run(asked.folder)}")
    return result


@contextmanager
def _explained(base: Config, settings: EvaluationSettings) -> Iterator[None]:
    """Turn running out of memory into OutOfMemory, with what makes it less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory: {settings.at_once} circuits of {base.train.micro_batch_size} pairs go through the model at once; try "
            f"--at_once {max(1, settings.at_once // 4)}, --train.micro_batch_size 1, or more ranks with --deepspeed "
            "configs/deepspeed/zero3.json"
        ) from error
