"""Find circuits: the whole run, top to bottom."""

import json
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from bigcircuit.config.load import members
from bigcircuit.config.schema import Config
from bigcircuit.data.collate import train_order
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import Stopped
from bigcircuit.forward.reference_logits import Targets
from bigcircuit.gates.members import node_counts, trained_granularities
from bigcircuit.io import checkpoint
from bigcircuit.io.files import write_json
from bigcircuit.io.provenance import versions
from bigcircuit.io.run_dir import MetricsFile, RunDir, choose_run_dir, write_config
from bigcircuit.memory.fit import check_fits, explain_out_of_memory
from bigcircuit.runtime.progress import ProgressDisplay
from bigcircuit.runtime.trackers import Trackers
from bigcircuit.train.final_circuits import final_circuits
from bigcircuit.train.fingerprint import check_same_fingerprint
from bigcircuit.train.setup import RunContext, resolve, set_up
from bigcircuit.train.state import TrainState, metric_rows
from bigcircuit.train.step import update, validate
from bigcircuit.train.summary_table import summary_sentence, summary_table


def prune(config: Config, ranks: Ranks, *, fresh: bool = False) -> RunDir:
    """Train the population that `config` describes and write its run folder.

    The same config and folder resume a stopped run; a finished one is left as it is. Raises UserError for what the user
    can mend, before weights are loaded where it can be known, and DivergedError when a loss is not finite.
    """
    display = ProgressDisplay(ranks.first, ranks.note)
    folder = choose_run_dir(config, fresh)
    if folder.finished:
        display.say(f"{folder.path} holds a finished run with these settings; nothing to do (--fresh starts another)")
        return folder
    started = time.monotonic()
    prepared = resolve(config, ranks)
    ranks.agree({**prepared.base, "settings": config.model_dump_json(), "versions": json.dumps(versions())})
    check_fits(config, prepared.data, ranks)
    with folder.locked() if ranks.first else nullcontext(), explain_out_of_memory(config, prepared.data, ranks):
        if ranks.first:
            write_config(folder, config, sys.argv)
        ground = set_up(prepared, display)
        introduce(ground, display)
        with ground.streams:
            state = start_or_resume(ground, folder, display)
            lessons = train(ground, state, folder, display)
            finish(ground, state, lessons, folder, display, started)
    return folder


def introduce(ground: RunContext, display: ProgressDisplay) -> None:
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


def start_or_resume(ground: RunContext, folder: RunDir, display: ProgressDisplay) -> TrainState:
    """Fresh gates, warm-started if asked, and constants if they are learned, or the state of the newest checkpoint."""
    population = ground.population(members(ground.config))
    state = TrainState.new(population, ground.nodes)
    saved = checkpoint.newest(folder.checkpoints, display.say)
    if saved is None:
        ground.warm(population)
        return state
    check_same_fingerprint(folder, saved.base, ground.prepared.base)
    state.restore(saved)
    display.say(f"resuming {folder.path} at step {state.step}")
    return state


def train(ground: RunContext, state: TrainState, folder: RunDir, display: ProgressDisplay) -> tuple[Targets, Targets]:
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

    def __init__(self, config: Config, folder: RunDir, state: TrainState) -> None:
        self._metrics, self._trackers = MetricsFile(folder, state.step, state.validated), Trackers(config, folder)

    def __call__(self, state: TrainState, columns: dict[str, Sequence[Any]]) -> None:
        rows = metric_rows(state.learners, state.step, columns)
        self._metrics.write(rows)
        self._trackers.log(rows)

    def close(self) -> None:
        """Finish the trackers."""
        self._trackers.close()


def finish(
    ground: RunContext,
    state: TrainState,
    lessons: tuple[Targets, Targets],
    folder: RunDir,
    display: ProgressDisplay,
    started: float,
) -> None:
    """Write circuits, summary.json and report.html, and show the closing table. All ranks score, the first one writes."""
    closing = final_circuits(ground, state, lessons, display)
    if not ground.passes.ranks.first:
        return
    paths = [folder.circuit(str(index), len(closing.circuits)) for index in range(len(closing.circuits))]
    for circuit, path in zip(closing.circuits, paths, strict=True):
        circuit.save(path)
    files = [str(path.relative_to(folder.path)) for path in paths]
    summary = closing.summary(files, time.monotonic() - started)
    write_json(folder.examples, {"members": closing.examples})
    from bigcircuit.report.render import render_run  # its figures take a second to load

    render_run(folder.path, summary)
    write_json(folder.summary, summary)
    display.show(summary_table(summary, wide=display.console.width >= 130))
    display.say(summary_sentence(summary))
    display.say(
        f"{summary['seconds']} s, peak memory {summary['peak_memory_bytes'] / 2**20:.0f} MiB; see {folder.report}"
    )
