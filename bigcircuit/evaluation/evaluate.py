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
from bigcircuit.forward.model_check import check_loaded_model
from bigcircuit.model.zero3 import explain_deepspeed
from bigcircuit.report.run_page import write_run_page
from bigcircuit.results.evaluation import Evaluation
from bigcircuit.results.result_files import save_result
from bigcircuit.runtime.host_memory import is_out_of_memory, return_freed_memory, saves_memory
from bigcircuit.runtime.progress import ProgressDisplay

EVALUATION_FILE = "evaluation.json"


def evaluate_circuits(
    names: Sequence[str],
    settings: EvaluationSettings,
    ranks: Ranks,
    *,
    config: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    progress: ProgressDisplay | None = None,
) -> Evaluation:
    """Evaluate the circuits of run folders and files, and write evaluation.json after every ablation.

    config: config file that names model and task of circuit files; overrides: dotted keys over every config. progress: where the
    evaluation is shown; by default on the terminal. Raises UserError for mistakes of the user, before weights are loaded wherever
    possible.
    """
    started = time.monotonic()
    progress = progress or ProgressDisplay(ranks.is_first, ranks.set_status)
    with progress.phase("reading circuits and pairs"):
        plan = plan_evaluation(names, settings, ranks, config, overrides or {}, progress)
    for note in plan.notes:
        progress.print_line(f"note: {note}")
    if saves_memory(plan.config, plan.model.deepspeed is not None):
        return_freed_memory()
    with explain_deepspeed(plan.config.deepspeed), _explain_out_of_memory(plan.config, settings):
        for line in plan.model.notes:
            progress.print_line(line)
        with progress.phase("loading weights"):
            frozen = plan.model.load(ranks.device)
        with progress.phase("checking the model"):
            check_loaded_model(frozen, brief=plan.model.is_read_from_disk)
        tasks = {name: score_full_model(plan, name, frozen) for name in plan.tasks}
        progress.print_line(
            f"{len(plan.circuits)} circuit(s), {len(tasks)} task(s), ablations: {', '.join(plan.ablations)}"
        )
        runner = EvaluationRunner(plan, frozen, tasks, progress)
        with progress.phase("evaluation", len(plan.ablations), "ablations") as done:
            for ablation in plan.ablations:
                runner.evaluate_under(ablation)
                done.advance()
                result = with_verdict(runner.result(time.monotonic() - started))
                if ranks.is_first:
                    save_result(result, plan.folder / EVALUATION_FILE)
    if ranks.is_first:
        show_evaluation(result, progress)
        progress.print_line(f"{result.seconds} s; {plan.folder / EVALUATION_FILE}; {write_run_page(plan.folder)}")
    return result


@contextmanager
def _explain_out_of_memory(config: Config, settings: EvaluationSettings) -> Iterator[None]:
    """Turn any out-of-memory error into OutOfMemory that names settings that need less memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not is_out_of_memory(error):
            raise
        raise OutOfMemory(
            f"out of memory: {settings.at_once} circuits of {config.train.micro_batch_size} pairs go through the model at once; "
            f"try --at_once {max(1, settings.at_once // 4)}, --train.micro_batch_size 1, or more ranks with --deepspeed "
            "configs/deepspeed/zero3.json"
        ) from error
