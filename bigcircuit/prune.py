"""Find circuits: the whole run, top to bottom."""

import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from bigcircuit import checkpoint
from bigcircuit.config import Config
from bigcircuit.config_file import members
from bigcircuit.display import Display
from bigcircuit.distributed import Ranks
from bigcircuit.errors import Stopped
from bigcircuit.gates.population import node_counts, trained_granularities
from bigcircuit.ground import Ground, lay, prepare
from bigcircuit.identity import check_same
from bigcircuit.optimal import Lessons
from bigcircuit.plan import explained, make_fit
from bigcircuit.results import finish
from bigcircuit.run_folder import Metrics, RunFolder, choose, versions, write_config
from bigcircuit.tasks.batch import train_order
from bigcircuit.tracking import Trackers
from bigcircuit.train import update, validate
from bigcircuit.train_state import TrainState, metric_rows


def prune(config: Config, ranks: Ranks, *, fresh: bool = False) -> RunFolder:
    """Train the population that `config` describes and write its run folder.

    The same config and folder resume a stopped run; a finished one is left as it is. Raises UserError for what the user
    can mend, before weights are loaded where it can be known, and DivergedError when a loss is not finite.
    """
    display = Display(ranks.first, ranks.note)
    folder = choose(config, fresh)
    if folder.finished:
        display.say(f"{folder.path} holds a finished run with these settings; nothing to do (--fresh starts another)")
        return folder
    started = time.monotonic()
    prepared = prepare(config, ranks)
    ranks.agree({**prepared.base, "settings": config.model_dump_json(), "versions": json.dumps(versions())})
    make_fit(config, prepared.data, ranks)
    with folder.locked() if ranks.first else nullcontext(), explained(config, prepared.data, ranks):
        if ranks.first:
            write_config(folder, config, sys.argv)
        ground = lay(prepared, display)
        introduce(ground, display)
        with ground.streams:
            state = start_or_resume(ground, folder, display)
            lessons = train(ground, state, folder, display)
            finish(ground, state, lessons, folder, display, started)
    return folder


def introduce(ground: Ground, display: Display) -> None:
    """Say in two lines what is about to be done."""
    config, data = ground.config, ground.data
    nodes = node_counts(ground.streams.frozen.shapes, trained_granularities(members(config)[0]))
    sizes = ", ".join(f"{len(examples)} {name}" for name, examples in data.splits.items())
    display.say(
        f"{config.model.path}: {len(ground.streams.frozen.layers)} layers, {nodes.pop('total')} site neurons; gates: "
        + ", ".join(f"{count} {name}" for name, count in nodes.items())
    )
    if data.bad:
        display.say(
            f"task.bad_pairs drop: {len(data.bad)} of {len(data.pairs)} pairs left out; the first: {data.bad[0]}"
        )
    display.say(
        f"{config.task.path or config.task.name}: {sizes} pairs; {len(members(config))} member(s), {config.ablation.name} ablation"
    )


def start_or_resume(ground: Ground, folder: RunFolder, display: Display) -> TrainState:
    """Fresh gates, warm-started if asked, and constants if they are learned, or the state of the newest checkpoint."""
    population = ground.population(members(ground.config))
    state = TrainState.new(population, ground.nodes)
    saved = checkpoint.newest(folder.checkpoints, display.say)
    if saved is None:
        ground.warm(population)
        return state
    check_same(folder, saved.base, ground.prepared.base)
    state.restore(saved)
    display.say(f"resuming {folder.path} at step {state.step}")
    return state


def train(ground: Ground, state: TrainState, folder: RunFolder, display: Display) -> tuple[Lessons, Lessons]:
    """The loop: validate and save when it is time, choose examples, update, log. Raises Stopped, with the state saved.

    Returns what was trained on and what was validated on.
    """
    config, settings, passes, streams = ground.config, ground.config.train, ground.passes, ground.streams
    ranks, examples = passes.ranks, ground.training_examples()
    if settings.both_ways:
        turned = len(examples) - len(ground.data.splits["train"])
        display.say(f"train.both_ways: {turned} pairs serve the other way round too")
    steps = max(member.config.train.steps for member in state.population.members)

    def due(every: int) -> bool:
        return state.step > 0 and (state.step % every == 0 or state.step == steps)

    def save() -> None:
        if ranks.first:
            checkpoint.save(
                folder.checkpoints, state.step, state.export(ground.prepared.base), settings.keep_checkpoints
            )

    record = Recorder(config, folder, state) if ranks.first else None
    with ranks.stop.heeded(), display.training(steps, state.step):
        try:
            training, validation = ground.training(examples, steps), ground.validation()
            while True:
                if due(settings.validate_every) and state.validated < state.step:
                    rows = validate(state, streams, validation, passes)
                    if record:
                        record(state, {f"validation.{name}": [row[name] for row in rows] for name in rows[0]})
                if due(settings.save_every):
                    save()
                if state.step == steps:
                    break
                order = train_order(len(examples), settings.batch_size, state.step, config.task.seed)
                logged = update(state, streams, training.references, [examples[i] for i in order], passes)
                display.step(
                    state.step, {"kl": logged["kl"].mean().item(), "neurons": logged["open.total"].mean().item()}
                )
                if due(settings.log_every) and record:
                    record(state, {name: values.tolist() for name, values in logged.items()})
                ranks.stop_if_asked()
        except Stopped:
            save()
            display.say(f"{folder.path}: stopped at step {state.step}, which is saved")
            raise
    if record:
        record.close()
    return training, validation


class Recorder:
    """Writes the numbers of a step to metrics.jsonl and to the trackers, one row a member."""

    def __init__(self, config: Config, folder: RunFolder, state: TrainState) -> None:
        self._metrics, self._trackers = Metrics(folder, state.step, state.validated), Trackers(config, folder)

    def __call__(self, state: TrainState, columns: dict[str, Sequence[Any]]) -> None:
        rows = metric_rows(state.learners, state.step, columns)
        self._metrics.write(rows)
        self._trackers.log(rows)

    def close(self) -> None:
        """Finish the trackers."""
        self._trackers.close()
