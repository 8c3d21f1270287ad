"""`bigcircuit evaluate`: the whole evaluation, top to bottom."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from bigcircuit.config import Config
from bigcircuit.display import Display
from bigcircuit.distributed import Ranks
from bigcircuit.errors import OutOfMemory
from bigcircuit.evaluation.asked import ask
from bigcircuit.evaluation.result import Evaluation, save
from bigcircuit.evaluation.settings import EvaluationSettings
from bigcircuit.evaluation.show import show, verdict
from bigcircuit.evaluation.work import Work, lay
from bigcircuit.frozen.load import load_frozen
from bigcircuit.plan import give_freed_memory_back, out_of_memory, saves_memory
from bigcircuit.sharding import read_settings

FILE = "evaluation.json"


def evaluate(
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
    display, started = Display(ranks.first, ranks.note), time.monotonic()
    asked = ask(names, settings, ranks, config, overrides or {})
    sharding = read_settings(asked.base.deepspeed)
    if saves_memory(asked.base, sharding):
        give_freed_memory_back()
    with _explained(asked.base, settings):
        frozen = load_frozen(asked.base.model, ranks.device, sharding)
        grounds = {key: lay(asked, key, frozen, display) for key in asked.tasks}
        display.say(
            f"{len(asked.subjects)} circuit(s), {len(grounds)} task(s), ablations: {', '.join(asked.ablations)}"
        )
        work = Work(asked, frozen, grounds, display)
        for name in asked.ablations:
            work.under(name)
            result = verdict(work.result(time.monotonic() - started))
            if ranks.first:
                save(result, asked.folder / FILE)
    if ranks.first:
        show(result, display)
        from bigcircuit.report import render  # its figures take a second to load

        display.say(f"{result.seconds} s; {asked.folder / FILE}; see {render(asked.folder)}")
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
