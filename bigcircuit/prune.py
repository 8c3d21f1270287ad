"""Find circuits: the whole run, top to bottom."""

import json
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from bigcircuit.config.load import check_objective, penalty_note
from bigcircuit.config.schema import Config
from bigcircuit.config.text import TEXT_TASK
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import Stopped
from bigcircuit.forward.reference_logits import Targets
from bigcircuit.gates.members import trained_granularities
from bigcircuit.io import checkpoint
from bigcircuit.io.checkpoint import SHARED_FOLDER
from bigcircuit.io.files import write_json
from bigcircuit.io.provenance import versions
from bigcircuit.io.run_dir import MetricsFile, RunDir, choose_run_dir, claimed, settings_sha256
from bigcircuit.memory.fit import check_fits, explain_out_of_memory
from bigcircuit.model.fingerprint import weight_inodes
from bigcircuit.model.granularity import node_counts
from bigcircuit.model.sites import FrozenModel
from bigcircuit.model.zero3 import explain_deepspeed
from bigcircuit.report.run_page import write_run_page
from bigcircuit.runtime.host_memory import watch_memory
from bigcircuit.runtime.progress import ProgressDisplay
from bigcircuit.runtime.trackers import Trackers, check_trackers
from bigcircuit.train.final_circuits import final_circuits
from bigcircuit.train.fingerprint import check_same_fingerprint, check_weights_unchanged
from bigcircuit.train.pair_filters import count_solved
from bigcircuit.train.resolve import resolve
from bigcircuit.train.setup import RunContext, set_up
from bigcircuit.train.state import TrainState, metric_rows
from bigcircuit.train.step import update, validate
from bigcircuit.train.summary_table import closing_sentence, closing_table
from bigcircuit.train.weight_copy import WeightCopy


def prune(
    config: Config,
    ranks: Ranks,
    *,
    fresh: bool = False,
    frozen: FrozenModel | None = None,
    progress: ProgressDisplay | None = None,
) -> RunDir:
    """Train the population that `config` describes and write its run folder.

    The same config and folder resume a stopped run; a finished one is left as it is. frozen: the model that the config names, where
    it is loaded already. progress: where the run is shown; by default on the terminal. Raises UserError for what the user
    can mend, before weights are loaded where it can be known, and DivergedError when a loss is not finite.
    """
    progress = progress or ProgressDisplay(ranks.is_first, ranks.set_status)
    folder = choose_run_dir(config, fresh)
    is_finished = folder.finished
    ranks.check_equal({"state of the run folder": f"{folder.path.name} {is_finished}"}, SHARED_FOLDER)
    if is_finished:
        progress.print_line(folder.nothing_to_do)
        return folder
    started = time.monotonic()
    watch_memory()
    check_trackers(config)
    run = resolve(config, ranks, progress)
    check_objective(run.members)
    ranks.check_equal({**run.fingerprint, "settings": config.model_dump_json(), "versions": json.dumps(versions())})
    with progress.phase("counting memory"):
        check_fits(run, ranks)
    with (
        claimed(folder, config, sys.argv) if ranks.is_first else nullcontext(),
        explain_deepspeed(config.deepspeed),
        explain_out_of_memory(run, ranks),
    ):
        context = set_up(run, frozen)
        introduce(context, progress)
        with context.streams:
            state = start_or_resume(context, folder, progress)
            targets = train(context, state, folder, progress)
            finish(context, state, targets, folder, progress, started)
    return folder


def introduce(context: RunContext, progress: ProgressDisplay) -> None:
    """Print model, gates, pairs and members in two lines."""
    config, data = context.config, context.data
    nodes = node_counts(context.run.model.shapes, trained_granularities(context.run.members[0]))
    sizes = ", ".join(f"{len(examples)} {name}" for name, examples in data.splits.items())
    progress.print_line(
        f"{config.model.path}: {len(context.streams.frozen.layers)} layers, {nodes.pop('total')} site neurons; gates: "
        + ", ".join(f"{count} {name}" for name, count in nodes.items())
    )
    for line in context.run.model.notes:
        progress.print_line(line)
    if data.bad:
        progress.print_line(
            f"task.bad_pairs drop: {len(data.bad)} of {len(data.pairs)} pairs left out; the first: {data.bad[0]}"
        )
    for note in (*data.notes, *penalty_note(context.run.members)):
        progress.print_line(f"note: {note}")
    unit = "windows" if config.task.name == TEXT_TASK else "pairs"
    progress.print_line(
        f"{config.task.path or config.task.name}: {sizes} {unit}; {len(context.run.members)} member(s), "
        f"{config.ablation.name} ablation"
    )
    if context.run.both_streams:
        progress.print_line(context.run.both_streams)


def start_or_resume(context: RunContext, folder: RunDir, progress: ProgressDisplay) -> TrainState:
    """Make new gates (warm-started if asked) and learned constants, or load the state of the newest checkpoint."""
    population = context.population(context.run.members)
    weights = WeightCopy.asked_for(context.config.train, context.streams.frozen)
    state = TrainState.new(population, context.nodes, weights)
    saved = checkpoint.load_on_all(folder.checkpoints, progress.print_line, context.micro_batches.ranks)
    if saved is None:
        context.warm_start(population)
        return state
    check_same_fingerprint(str(folder.path), saved.base, fingerprint_of(context))
    state.restore(saved)
    progress.print_line(f"resuming {folder.path} at step {state.step}")
    before, now = saved.data.get("threads"), torch.get_num_threads()
    if before not in (None, now):
        progress.print_line(
            f"note: torch uses {now} threads and used {before} before, so numbers may differ from those of a run in one piece; "
            f"set OMP_NUM_THREADS={before} for the same bits"
        )
    return state


def fingerprint_of(context: RunContext) -> dict[str, str]:
    """Return what a checkpoint is known by: hashes of settings, model files and pairs, by name."""
    written = {"token ids of the samples": context.data.tokens_sha256} if context.config.task.text.generate else {}
    return {"settings": settings_sha256(context.config), **context.run.fingerprint, **written}


def train(context: RunContext, state: TrainState, folder: RunDir, progress: ProgressDisplay) -> tuple[Targets, Targets]:
    """Run the loop: validate and save when due, choose examples, update, log. Raises Stopped, with the state saved.

    Returns the targets of training and of validation.
    """
    config, settings, micro_batches, streams = (
        context.config,
        context.config.train,
        context.micro_batches,
        context.streams,
    )
    ranks, order = micro_batches.ranks, context.training_order()
    is_text = config.task.name == TEXT_TASK
    if settings.both_ways and not is_text:
        turned = len(order.examples) - len(context.data.splits["train"])
        progress.print_line(f"train.both_ways: {turned} pairs serve the other way round too")
    steps = max(member.config.train.steps for member in state.population.members)

    def due(every: int) -> bool:
        return state.step == steps or (state.step > 0 and state.step % every == 0)

    def save() -> None:
        if ranks.is_first:
            if context.run.model.stays_in_files:
                check_weights_unchanged(config, context.run.fingerprint, files)
            exported = state.export(fingerprint_of(context))
            checkpoint.save(folder.checkpoints, state.step, exported, settings.keep_checkpoints)

    files = weight_inodes(config.model)
    record = Recorder(config, folder, state) if ranks.is_first else None
    with ranks.stop.handling_signals():
        try:
            kept = context.kept_logits(folder.references)
            sites = state.population.draw([0])(0).keys()
            training = context.training_targets(order, steps, kept, sites, folder.path)
            validation = context.validation_targets(kept)
            if ranks.is_first and not is_text:
                for line in count_solved([validation, training], micro_batches).lines():
                    progress.print_line(line)
            with (
                state.weights_in_model(),
                progress.phase("pruning", steps, "steps", done=state.step, lasting=True) as updates,
            ):
                while True:
                    if due(settings.validate_every) and (state.validated < state.step or not steps):
                        rows = validate(state, streams, validation, micro_batches)
                        if record:
                            record(state, {f"validation.{name}": [row[name] for row in rows] for name in rows[0]})
                    if due(settings.save_every):
                        save()
                    if state.step == steps:
                        break
                    chosen = order.batch(state.step)
                    logged = update(state, streams, training.references, chosen, micro_batches, training.store)
                    seen = {"kl": logged["kl"].mean().item()}
                    if "open.total" in logged:  # not where experts alone have gates
                        seen["neurons"] = logged["open.total"].mean().item()
                    updates.advance(values=seen)
                    if due(settings.log_every) and record:
                        record(state, {name: values.tolist() for name, values in logged.items()})
                    ranks.stop_if_requested()
        except Stopped:
            save()
            progress.print_line(f"{folder.path}: stopped at step {state.step}, which is saved")
            raise
    if record:
        record.close()
    return training, validation


class Recorder:
    """Writer of the numbers of a step to metrics.jsonl and to the trackers, one row a member."""

    def __init__(self, config: Config, folder: RunDir, state: TrainState) -> None:
        self._metrics, self._trackers = MetricsFile(folder, state.step, state.validated), Trackers(config, folder)

    def __call__(self, state: TrainState, columns: dict[str, Sequence[Any]]) -> None:
        rows = metric_rows(state.member_states, state.step, columns)
        self._metrics.write(rows)
        self._trackers.log(rows)

    def close(self) -> None:
        """Finish the trackers."""
        self._trackers.close()


def finish(
    context: RunContext,
    state: TrainState,
    targets: tuple[Targets, Targets],
    folder: RunDir,
    progress: ProgressDisplay,
    started: float,
) -> None:
    """Write circuits, summary.json and report.html, and print the closing table. All ranks score, rank 0 writes."""
    closing = final_circuits(context, state, targets)
    if not context.micro_batches.ranks.is_first:
        return
    paths = [folder.circuit(str(index), len(closing.circuits)) for index in range(len(closing.circuits))]
    for circuit, path in zip(closing.circuits, paths, strict=True):
        circuit.save(path)
    files = [str(path.relative_to(folder.path)) for path in paths]
    summary = closing.summary(files, time.monotonic() - started)
    write_json(folder.examples, {"members": closing.examples})
    progress.print_table(closing_table(summary, progress.console.width))
    progress.print_line(closing_sentence(summary))
    page = write_run_page(folder.path, summary)
    shutil.rmtree(folder.references, ignore_errors=True)
    write_json(folder.summary, summary)  # last, because with it the run is finished
    progress.print_line(f"{summary['seconds']} s, peak memory {summary['peak_memory_bytes'] / 2**20:.0f} MiB; {page}")
