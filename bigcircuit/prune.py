"""Find circuits: the whole run, top to bottom."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from bigcircuit import checkpoint
from bigcircuit.ablated import ZERO, Moments
from bigcircuit.ablation import starting_ablation
from bigcircuit.config import Config, TrainConfig
from bigcircuit.config_file import members
from bigcircuit.display import Display
from bigcircuit.distributed import Ranks
from bigcircuit.errors import Stopped, UserError
from bigcircuit.evaluation.attribution import integrated_gradients, rank_scores
from bigcircuit.evaluation.scores import score
from bigcircuit.frozen.load import load_config, load_frozen, load_tokenizer, skeleton
from bigcircuit.frozen.sites import FrozenModel
from bigcircuit.gates.granularity import GRANULARITIES
from bigcircuit.gates.population import Population, node_counts, trained_granularities
from bigcircuit.identity import check_same, identity
from bigcircuit.optimal import Lessons
from bigcircuit.plan import explained, give_freed_memory_back, refuse_what_cannot_fit
from bigcircuit.references import References
from bigcircuit.results import finish
from bigcircuit.run_folder import Metrics, RunFolder, choose, versions, write_config
from bigcircuit.sharding import read_settings
from bigcircuit.streams import Streams
from bigcircuit.targets import check_targets
from bigcircuit.tasks.batch import train_order
from bigcircuit.tasks.both_ways import both_ways
from bigcircuit.tasks.data import TaskData, load_reference, load_task
from bigcircuit.tasks.pair import Example
from bigcircuit.tasks.passes import Passes
from bigcircuit.tracking import Trackers
from bigcircuit.train import update, validate
from bigcircuit.train_state import TrainState


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
    hf_config = load_config(config.model)
    tokenizer = load_tokenizer(config.model)
    data = load_task(config.task, tokenizer, hf_config)
    reference = load_reference(config, tokenizer, hf_config)
    check_targets(config, node_counts(skeleton(config.model).shapes, list(GRANULARITIES)))
    sharding, passes = read_settings(config.deepspeed), Passes.of(config, ranks)
    base = identity(config, data, reference)
    ranks.agree(base | {"settings": config.model_dump_json(), "versions": json.dumps(versions())})
    refuse_what_cannot_fit(config, data, ranks)
    give_freed_memory_back()
    with folder.locked() if ranks.first else nullcontext(), explained(config, data, ranks):
        if ranks.first:
            write_config(folder, config, sys.argv)
        frozen = load_frozen(config.model, ranks.device, sharding)
        data = keep_solved(config, frozen, data, passes, display)
        introduce(config, frozen, data, display)
        averaged = data.splits["train"] if reference is None else reference.examples
        ablation, moments = starting_ablation(config.ablation, frozen, averaged, passes)
        with Streams(frozen, ablation, config.train.checkpointing) as streams:
            state = start_or_resume(config, folder, base, streams, moments, data, passes, display)
            lessons = train(config, state, base, streams, data, folder, passes, display)
            finish(config, state, streams, lessons, data, reference, tokenizer, folder, passes, display, started)
    return folder


def keep_solved(config: Config, frozen: FrozenModel, data: TaskData, passes: Passes, display: Display) -> TaskData:
    """With `task.keep: solved`, leave out the pairs that the full model gets wrong. Raises UserError if none is left."""
    if config.task.keep == "all":
        return data
    kept, before = {}, sum(map(len, data.splits.values()))
    with Streams(frozen, ZERO) as streams:
        for name, examples in data.splits.items():
            right = score(streams, examples, None, passes).accuracy[0] if examples else []
            kept[name] = [example for example, solved in zip(examples, right, strict=True) if solved]
    after = sum(map(len, kept.values()))
    display.say(f"task.keep solved: {before - after} of {before} pairs left out, the full model gets them wrong")
    if not kept["train"] or not kept["test"]:
        raise UserError("task.keep solved leaves no pair to train or test on; the model does not show this behaviour")
    return data._replace(splits=kept, unsolved=before - after)


def introduce(config: Config, frozen: FrozenModel, data: TaskData, display: Display) -> None:
    """Say in two lines what is about to be done."""
    nodes = node_counts(frozen.shapes, trained_granularities(members(config)[0]))
    sizes = ", ".join(f"{len(examples)} {name}" for name, examples in data.splits.items())
    display.say(
        f"{config.model.path}: {len(frozen.layers)} layers, {nodes.pop('total')} site neurons; gates: "
        + ", ".join(f"{count} {name}" for name, count in nodes.items())
    )
    if data.bad:
        display.say(
            f"task.bad_pairs drop: {len(data.bad)} of {len(data.pairs)} pairs left out; the first: {data.bad[0]}"
        )
    display.say(
        f"{config.task.path or config.task.name}: {sizes} pairs; {len(members(config))} member(s), {config.ablation.name} ablation"
    )


def start_or_resume(
    config: Config,
    folder: RunFolder,
    base: Mapping[str, str],
    streams: Streams,
    moments: Moments | None,
    data: TaskData,
    passes: Passes,
    display: Display,
) -> TrainState:
    """Fresh gates, warm-started if asked, and constants if they are learned, or the state of the newest checkpoint."""
    frozen = streams.frozen
    population = Population.new(members(config), frozen.shapes, passes.ranks.device)
    if config.ablation.kind == "optimal" and moments is not None:
        population.start_constants(moments)
    state = TrainState.new(population, node_counts(frozen.shapes, config.gates.granularities))
    saved = checkpoint.newest(folder.checkpoints, display.say)
    if saved is not None:
        check_same(folder, saved.base, base)
        state.restore(saved)
        display.say(f"resuming {folder.path} at step {state.step}")
    elif config.gates.warm_start == "integrated_gradients":
        scores = integrated_gradients(streams, data.splits["train"], passes, points=config.gates.warm_start_points)
        population.shift_neurons(rank_scores(scores))
    return state


def train(
    config: Config,
    state: TrainState,
    base: Mapping[str, str],
    streams: Streams,
    data: TaskData,
    folder: RunFolder,
    passes: Passes,
    display: Display,
) -> tuple[Lessons, Lessons]:
    """The loop: validate and save when it is time, choose examples, update, log. Raises Stopped, with the state saved.

    Returns what was trained on and what was validated on.
    """
    settings, examples, ranks = config.train, data.splits["train"], passes.ranks
    held_out = data.splits["validation"] or examples
    if settings.both_ways:
        examples = both_ways(streams, examples, passes)
        display.say(f"train.both_ways: {len(examples) - len(data.splits['train'])} pairs serve the other way round too")
    steps = max(member.config.train.steps for member in state.population.members)

    def due(every: int) -> bool:
        return state.step > 0 and (state.step % every == 0 or state.step == steps)

    def save() -> None:
        if ranks.first:
            checkpoint.save(folder.checkpoints, state.step, state.export(base), settings.keep_checkpoints)

    record = Recorder(config, folder, state) if ranks.first else None
    with ranks.stop.heeded(), display.training(steps, state.step):
        try:
            shuffled = config.task.seed if config.task.labels == "random" else None
            used = wanted(examples, settings, config.task.seed, steps)
            references = References(streams, used, passes, shuffled=shuffled)
            expected = References(streams, held_out, passes, full=True, shuffled=shuffled)
            while True:
                if due(settings.validate_every) and state.validated < state.step:
                    rows = validate(state, streams, held_out, passes, expected)
                    if record:
                        record(state, {f"validation.{name}": [row[name] for row in rows] for name in rows[0]})
                if due(settings.save_every):
                    save()
                if state.step == steps:
                    break
                order = train_order(len(examples), settings.batch_size, state.step, config.task.seed)
                logged = update(state, streams, references, [examples[i] for i in order], passes)
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
    return Lessons(used, references, full=False), Lessons(held_out, expected, full=True)


def wanted(examples: Sequence[Example], settings: TrainConfig, seed: int, steps: int) -> list[Example]:
    """The examples that a run uses; the same for a resumed one, so that it computes the same references to the bit."""
    orders = (train_order(len(examples), settings.batch_size, step, seed) for step in range(steps))
    return [examples[index] for index in sorted({index for order in orders for index in order})]


class Recorder:
    """Writes the numbers of a step to metrics.jsonl and to the trackers, one row a member."""

    def __init__(self, config: Config, folder: RunFolder, state: TrainState) -> None:
        self._metrics, self._trackers = Metrics(folder, state.step, state.validated), Trackers(config, folder)

    def __call__(self, state: TrainState, columns: dict[str, Sequence[Any]]) -> None:
        rows = [
            {"step": state.step, "member": index, "lr": learner.lr}
            | {f"dual.{name}": value for name, value in learner.duals.value.items()}
            | {name: values[index] for name, values in columns.items()}
            for index, learner in enumerate(state.learners)
        ]
        self._metrics.write(rows)
        self._trackers.log(rows)

    def close(self) -> None:
        """Finish the trackers."""
        self._trackers.close()
