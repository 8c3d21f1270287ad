"""What an evaluation is about, as far as it is known before weights are loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.ablation.kinds import KINDS
from bigcircuit.config.load import load
from bigcircuit.config.schema import Config, TaskConfig
from bigcircuit.data.dataset import TaskData, load_task
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.evaluation.ablation_constants import MeanData, load_mean_data, saved_optimal
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.open_circuits import LoadedCircuit, check_fits, open_circuits, run_config
from bigcircuit.io.files import check_writable
from bigcircuit.model.resolve import ResolvedModel, resolve_model
from bigcircuit.results.locate import run_of, unique


class EvaluationPlan(NamedTuple):
    """Circuits, tasks and options that fit each other."""

    subjects: Sequence[LoadedCircuit]
    base: Config
    """Of the first circuit; all are of its model."""
    model: ResolvedModel
    tasks: Mapping[str, TaskConfig]
    """By a short name, those of the circuits first."""
    data: Mapping[str, TaskData]
    """By the same names."""
    averaged: Mapping[str, MeanData]
    """By circuit: what means are taken over."""
    ablations: Sequence[str]
    settings: EvaluationSettings
    micro_batches: MicroBatches
    folder: Path
    """Where evaluation.json is to be."""

    def key(self, subject: LoadedCircuit) -> str:
        """The task that a circuit was found on."""
        return next(key for key, task in self.tasks.items() if task == subject.task)

    def own(self, subject: LoadedCircuit, ablation: str) -> Ablation | None:
        """The learned constants of a circuit, if that is what the ablation asks for."""
        return saved_optimal(subject, ablation)

    def main(self, subject: LoadedCircuit) -> str | None:
        """The ablation under which single nodes of a circuit are looked at; None if there is none.

        The one it was found under, or else the first: but not one whose constants would have to be learned without each node.
        """
        first = [name for name in (found_under(subject), *self.ablations) if name in self.ablations]
        return next((name for name in first if not KINDS[name].learned or self.own(subject, name)), None)


def plan_evaluation(
    names: Sequence[str],
    settings: EvaluationSettings,
    ranks: Ranks,
    config: str | None,
    overrides: Mapping[str, Any],
) -> EvaluationPlan:
    """Open circuits and pairs and check that they fit; see `evaluate`. Raises UserError."""
    subjects = open_circuits(names, settings.control, config, overrides)
    base = _one_model(subjects)
    model = resolve_model(base.model, base.deepspeed)
    for subject in subjects:
        check_fits(subject, model.shapes, settings.any_model)
    tasks = _tasks(subjects, settings.tasks)
    data = {key: load_task(task, model.tokenizer, model.hf_config) for key, task in tasks.items()}
    ablations = settings.ablations or tuple(dict.fromkeys(found_under(s) for s in subjects if not s.control))
    averaged = load_mean_data(subjects, ablations, model.tokenizer, model.hf_config)
    folder = Path(settings.output) if settings.output else run_of(subjects[0].path) or subjects[0].path.parent
    if ranks.is_first:
        check_writable(folder)
    ranks.check_equal(
        {name: one.sha256 for name, one in data.items()}
        | {f"ablation.data of {name}": one.reference.sha256 for name, one in averaged.items() if one.reference}
        | {"options": settings.model_dump_json()}
    )
    return EvaluationPlan(
        subjects=subjects,
        base=base,
        model=model,
        tasks=tasks,
        data=data,
        averaged=averaged,
        ablations=ablations,
        settings=settings,
        micro_batches=MicroBatches.of(base, ranks),
        folder=folder,
    )


def found_under(subject: LoadedCircuit) -> str:
    """The ablation that a circuit was found under."""
    return subject.circuit.ablation_name


def _one_model(subjects: Sequence[LoadedCircuit]) -> Config:
    """The config of the first circuit. Raises UserError unless all name the same model."""
    first = subjects[0]
    for other in subjects[1:]:
        if other.config.model != first.config.model:
            raise UserError(
                f"{other.path}: is of model {other.config.model.path}, {first.path} of {first.config.model.path}; "
                "evaluate circuits of one model at a time, or set --model.path for all"
            )
    return first.config


def _tasks(subjects: Sequence[LoadedCircuit], others: Sequence[str]) -> dict[str, TaskConfig]:
    """Distinct tasks by a short name of their own, those of the circuits first."""
    found: dict[str, TaskConfig] = {}
    for task in [*(s.task for s in subjects), *map(_other, others)]:
        if task in found.values():
            continue
        found[unique(Path(task.path).stem if task.path else task.name, found)] = task
    return found


def _other(name: str) -> TaskConfig:
    """The task of a config file or of a run folder. Raises UserError."""
    path = Path(name)
    if path.is_dir():
        return run_config(path, {}).task.model_copy(update={"labels": "own"})
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise UserError(
            f"--tasks: {name} is neither a config (.yaml) nor a run folder; for a pair file write a config with "
            f"`task: {{name: pairs, path: {name}}}` and name that"
        )
    return load(path).task
