"""The plan of an evaluation: circuits, tasks, constants and options, checked before weights are loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigcircuit.ablation.kinds import KINDS
from bigcircuit.attribution.baselines import BASELINES
from bigcircuit.config.load import load
from bigcircuit.config.schema import Config, TaskConfig
from bigcircuit.config.text import TEXT_TASK
from bigcircuit.data.dataset import TaskData, load_task
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.evaluation.ablation_constants import CircuitConstants, MeanDataReader, resolve_constants
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.held_out import TrainingPrompts, check_held_out
from bigcircuit.evaluation.open_circuits import (
    LoadedCircuit,
    check_same_model,
    check_same_tokens,
    open_circuits,
    run_config,
)
from bigcircuit.io.files import check_writable
from bigcircuit.metrics.own import own_names
from bigcircuit.model.granularity import LayerShape
from bigcircuit.model.resolve import ResolvedModel, resolve_model
from bigcircuit.results.locate import run_of, unique
from bigcircuit.runtime.progress import ProgressDisplay


class EvaluationPlan(NamedTuple):
    """Circuits, tasks and options that fit each other."""

    circuits: Sequence[LoadedCircuit]
    config: Config
    """Config of the first circuit; all circuits are of its model."""
    model: ResolvedModel
    tasks: Mapping[str, TaskConfig]
    """Short name -> task, the tasks of the circuits first."""
    data: Mapping[str, TaskData]
    """Short name of a task -> its pairs."""
    constants: Mapping[tuple[str, str], CircuitConstants]
    """Name of a circuit, ablation -> constants."""
    ablations: Sequence[str]
    settings: EvaluationSettings
    micro_batches: MicroBatches
    folder: Path
    """Folder for evaluation.json."""
    notes: Sequence[str] = ()
    """What the user should know about tokens and held-out pairs, one line each."""

    def task_of(self, loaded: LoadedCircuit) -> str:
        """Find the short name of the task that a circuit was found on."""
        return _task_name(self.tasks, loaded)

    def main_ablation(self, loaded: LoadedCircuit) -> str | None:
        """Choose the ablation for minimality and example predictions of a circuit; None if no ablation is suitable.

        The ablation that the circuit was found under, or else the first one, but none whose constants would have to be fitted anew
        without each node.
        """
        names = [name for name in (loaded.found_under, *self.ablations) if name in self.ablations]
        return next(
            (name for name in names if not KINDS[name].learned or self.constants[loaded.name, name].saved is not None),
            None,
        )


def plan_evaluation(
    names: Sequence[str],
    settings: EvaluationSettings,
    ranks: Ranks,
    config: str | None,
    overrides: Mapping[str, Any],
    progress: ProgressDisplay | None = None,
) -> EvaluationPlan:
    """Open circuits and pairs, and check that they fit; arguments as for `evaluate_circuits`. Raises UserError.

    progress: where all passes of the evaluation are shown.
    """
    circuits = open_circuits(names, settings.control, config, overrides)
    first = _check_one_model(circuits)
    model = resolve_model(first.model, first.deepspeed)
    check_methods(settings, model.shapes)
    for loaded in circuits:
        check_same_model(loaded, model.shapes, settings.any_model, progress)
    tasks = _tasks(circuits, settings.tasks)
    data = {name: load_task(task, model.tokenizer, model.hf_config) for name, task in tasks.items()}
    notes = [note for task_data in data.values() for note in task_data.notes]
    prompts = TrainingPrompts(model.tokenizer, model.hf_config, [(tasks[name], data[name]) for name in tasks])
    for loaded in circuits if not settings.any_model else ():
        check_same_tokens(loaded, data[_task_name(tasks, loaded)])
        found = [check_held_out(loaded, name, task, data[name], prompts) for name, task in tasks.items()]
        notes += filter(None, found)
    ablations = settings.ablations or tuple(
        dict.fromkeys(loaded.found_under for loaded in circuits if not loaded.control)
    )
    for name in ablations:
        _check_second_prompt(name, tasks)
    _check_own_metrics(tasks)
    read = MeanDataReader(model.tokenizer, model.hf_config)
    constants = {
        (loaded.name, name): resolve_constants(loaded, name, read, data[_task_name(tasks, loaded)].sha256)
        for loaded in circuits
        for name in ablations
    }
    folder = Path(settings.output) if settings.output else run_of(circuits[0].path) or circuits[0].path.parent
    if ranks.is_first:
        check_writable(folder)
    ranks.check_equal(
        {name: task_data.sha256 for name, task_data in data.items()}
        | {
            f"ablation.data of {name}": found.data.reference.sha256
            for (name, _), found in constants.items()
            if found.data is not None and found.data.reference is not None
        }
        | {"options": settings.model_dump_json()}
    )
    return EvaluationPlan(
        circuits=circuits,
        config=first,
        model=model,
        tasks=tasks,
        data=data,
        constants=constants,
        ablations=ablations,
        settings=settings,
        micro_batches=MicroBatches.of(first, ranks, progress),
        folder=folder,
        notes=notes,
    )


def _check_second_prompt(ablation: str, tasks: Mapping[str, TaskConfig]) -> None:
    """Raises UserError for an ablation that takes a second prompt on general text, which has none."""
    for name, task in tasks.items():
        if KINDS[ablation].needs_corrupted and task.name == TEXT_TASK:
            others = ", ".join(other for other, kind in KINDS.items() if not kind.needs_corrupted)
            raise UserError(
                f"--ablations {ablation}: task {name} is general text, without a second prompt; use any of {others}"
            )


def _check_own_metrics(tasks: Mapping[str, TaskConfig]) -> None:
    """Raises UserError for metrics of the caller's own on general text, whose logits never exist as a whole."""
    for name, task in tasks.items():
        if own_names() and task.name == TEXT_TASK:
            raise UserError(
                f"metrics: {', '.join(own_names())} take whole logits and task {name} is general text, whose logits "
                "exist in chunks alone; leave the metrics out"
            )


def check_methods(settings: EvaluationSettings, shapes: Sequence[LayerShape]) -> None:
    """Check that the asked methods can rank the nodes of the model, unless all are asked. Raises UserError."""
    for name, baseline in BASELINES.items():
        if (
            name in settings.rankings
            and not set(BASELINES) <= set(settings.rankings)
            and (why := baseline.refusal(shapes))
        ):
            raise UserError(f"--methods: {name} {why}; leave it out")


def _check_one_model(circuits: Sequence[LoadedCircuit]) -> Config:
    """Return the config of the first circuit. Raises UserError unless all configs name the same model."""
    first = circuits[0]
    for other in circuits[1:]:
        # Where weights and passes are does not matter, and the attention of the first serves all.
        same = {name: getattr(first.config.model, name) for name in ("weights", "device", "attention")}
        if other.config.model.model_copy(update=same) != first.config.model:
            raise UserError(
                f"{other.path}: is of model {other.config.model.path}, {first.path} of {first.config.model.path}; "
                "evaluate circuits of one model at a time, or set --model.path for all"
            )
    return first.config


def _task_name(tasks: Mapping[str, TaskConfig], loaded: LoadedCircuit) -> str:
    return next(name for name, task in tasks.items() if task == loaded.task)


def _tasks(circuits: Sequence[LoadedCircuit], others: Sequence[str]) -> dict[str, TaskConfig]:
    """Collect distinct tasks by unique short names, the tasks of the circuits first. others: `--tasks`."""
    tasks: dict[str, TaskConfig] = {}
    for task in [*(loaded.task for loaded in circuits), *map(_other_task, others)]:
        if task not in tasks.values():
            tasks[unique(Path(task.path).stem if task.path else task.name, tasks)] = task
    return tasks


def _other_task(name: str) -> TaskConfig:
    """Read the task of a config file or of a run folder. Raises UserError."""
    path = Path(name)
    if path.is_dir():
        return run_config(path, {}).task.model_copy(update={"labels": "own"})
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise UserError(
            f"--tasks: {name} is neither a config (.yaml) nor a run folder; for a pair file write a config with "
            f"`task: {{name: pairs, path: {name}}}` and name that"
        )
    return load(path).task
