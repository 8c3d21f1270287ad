"""`bigcircuit evaluate`: the whole evaluation, top to bottom."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bigcircuit.config.schema import Config
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import OutOfMemory
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.console import show_evaluation
from bigcircuit.evaluation.plan import plan_evaluation
from bigcircuit.evaluation.runner import EvaluationRunner, score_full_model
from bigcircuit.evaluation.verdict import with_verdict
from bigcircuit.results.evaluation import Evaluation, save_result
from bigcircuit.runtime.host_memory import is_out_of_memory, return_freed_memory, saves_memory
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
    progress, started = ProgressDisplay(ranks.is_first, ranks.set_status), time.monotonic()
    asked = plan_evaluation(names, settings, ranks, config, overrides or {})
    if saves_memory(asked.base, asked.model.deepspeed is not None):
        return_freed_memory()
    with _explained(asked.base, settings):
        frozen = asked.model.load(ranks.device)
        grounds = {key: score_full_model(asked, key, frozen, progress) for key in asked.tasks}
        progress.print_line(
            f"{len(asked.subjects)} circuit(s), {len(grounds)} task(s), ablations: {', '.join(asked.ablations)}"
        )
        work = EvaluationRunner(asked, frozen, grounds, progress)
        for name in asked.ablations:
            work.under(name)
            result = with_verdict(work.result(time.monotonic() - started))
            if ranks.is_first:
                save_result(result, asked.folder / FILE)
    if ranks.is_first:
        show_evaluation(result, progress)
        from bigcircuit.report.render import render_run  # its figures take a second to load

        progress.print_line(f"{result.seconds} s; {asked.folder / FILE}; see {render_run(asked.folder)}")
    return result


@contextmanager
def _explained(base: Config, settings: EvaluationSettings) -> Iterator[None]:
    """Turn running out of memory into OutOfMemory, with what makes it less."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory: {settings.at_once} circuits of {base.train.micro_batch_size} pairs go through the model at once; try "
            f"--at_once {max(1, settings.at_once // 4)}, --train.micro_batch_size 1, or more ranks with --deepspeed "
            "configs/deepspeed/zero3.json"
        ) from error
