"""`bigcircuit evaluate`: the whole evaluation, top to bottom."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bigcircuit.ablated import ZERO
from bigcircuit.config import Config, TaskConfig
from bigcircuit.config_file import load
from bigcircuit.display import Display
from bigcircuit.distributed import Ranks
from bigcircuit.errors import OutOfMemory, UserError
from bigcircuit.evaluation.bench import LEARNED, MEANS, Bench, make_bench
from bigcircuit.evaluation.curves import curves
from bigcircuit.evaluation.means import Averaged, learned_by, load_averaged, means_of
from bigcircuit.evaluation.measure import Held, measure
from bigcircuit.evaluation.result import Cell, Curve, EvaluatedCircuit, Evaluation, Task, UnderAblation, save
from bigcircuit.evaluation.scores import score, summarise
from bigcircuit.evaluation.settings import EvaluationSettings
from bigcircuit.evaluation.show import show, verdict
from bigcircuit.evaluation.subjects import Subject, check_fits, open_subjects, run_of, unique
from bigcircuit.frozen.load import fingerprint, load_config, load_frozen, load_tokenizer, sha256, skeleton
from bigcircuit.frozen.parameters import parameters_kept
from bigcircuit.frozen.sites import FrozenModel
from bigcircuit.gates.granularity import GRANULARITIES
from bigcircuit.gates.population import node_counts
from bigcircuit.ground import keep_solved
from bigcircuit.plan import give_freed_memory_back, out_of_memory
from bigcircuit.run_folder import versions
from bigcircuit.sharding import read_settings
from bigcircuit.streams import Streams
from bigcircuit.tasks.data import TaskData, load_task
from bigcircuit.tasks.passes import Passes

FILE = "evaluation.json"


class Ground(NamedTuple):
    """One task and what the full model does on its held-out pairs."""

    config: TaskConfig
    data: TaskData
    held: Held


def evaluate(
    names: Sequence[str],
    settings: EvaluationSettings,
    ranks: Ranks,
    *,
    config: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Evaluation:
    """Evaluate the circuits of run folders and files and write evaluation.json.

    config: names model and task of circuit files that lie in no run folder; overrides: dotted keys over every config. Raises
    UserError for what the user can mend, before weights are loaded where it can be known.
    """
    display, started = Display(ranks.first, ranks.note), time.monotonic()
    subjects = open_subjects(names, settings.control, config, overrides or {})
    base = _one_model(subjects)
    hf_config, tokenizer, shapes = load_config(base.model), load_tokenizer(base.model), skeleton(base.model).shapes
    for subject in subjects:
        check_fits(subject, shapes, settings.any_model)
    tasks = _tasks(subjects, settings.tasks)
    loaded = {key: load_task(task, tokenizer, hf_config) for key, task in tasks.items()}
    wanted = settings.ablations or tuple(dict.fromkeys(_found_under(s) for s in subjects if not s.control))
    averaged = load_averaged(subjects, wanted, tokenizer, hf_config)
    passes, sharding = Passes.of(base, ranks), read_settings(base.deepspeed)
    ranks.agree(
        {name: data.sha256 for name, data in loaded.items()}
        | {f"ablation.data of {name}": one.reference.sha256 for name, one in averaged.items() if one.reference}
        | {"options": settings.model_dump_json()}
    )
    give_freed_memory_back()
    with _explained(base, settings):
        frozen = load_frozen(base.model, ranks.device, sharding)
        grounds = {key: _ground(base, tasks[key], data, frozen, passes, display) for key, data in loaded.items()}
        display.say(f"{len(subjects)} circuit(s), {len(grounds)} task(s), ablations: {', '.join(wanted)}")
        work = _Work(frozen, subjects, tasks, grounds, averaged, wanted, settings, passes, display)
        for name in wanted:
            work.under(name)
    result = verdict(
        Evaluation(
            model={"path": base.model.path} | (fingerprint(base.model) if ranks.first else {}),
            nodes=node_counts(shapes, list(GRANULARITIES)),
            tasks={key: _task(ground) for key, ground in grounds.items()},
            circuits=[_circuit(s, work.key(s), frozen, work.scores[s.name]) for s in subjects],
            cross=work.cross if len(grounds) > 1 else {},
            curves=work.curves,
            verdict="",
            settings=settings.model_dump(mode="json"),
            command=sys.argv,
            versions=versions(),
            seconds=round(time.monotonic() - started, 1),
        )
    )
    if ranks.first:
        _finish(result, Path(settings.output) if settings.output else _folder(subjects[0]), display)
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


def _finish(result: Evaluation, folder: Path, display: Display) -> None:
    save(result, folder / FILE)
    show(result, display)
    from bigcircuit.report import render  # its figures take a second to load

    display.say(f"{result.seconds} s; {folder / FILE}; see {render(folder)}")


class _Work:
    """Collects the scores of all circuits, ablation by ablation."""

    def __init__(
        self,
        frozen: FrozenModel,
        subjects: Sequence[Subject],
        tasks: Mapping[str, TaskConfig],
        grounds: Mapping[str, Ground],
        averaged: Mapping[str, Averaged],
        wanted: Sequence[str],
        settings: EvaluationSettings,
        passes: Passes,
        display: Display,
    ) -> None:
        self.frozen, self.subjects, self.tasks, self.grounds = frozen, subjects, tasks, grounds
        self.averaged = averaged
        self.wanted, self.settings, self.passes, self.display = wanted, settings, passes, display
        self.scores: dict[str, dict[str, UnderAblation]] = {subject.name: {} for subject in subjects}
        self.cross: dict[str, list[Cell]] = {}
        self.curves: dict[str, list[Curve]] = {}

    def key(self, subject: Subject) -> str:
        """The task that a circuit was found on."""
        return next(key for key, task in self.tasks.items() if task == subject.task)

    def under(self, name: str) -> None:
        """Everything under one ablation."""
        self.cross[name], self.curves[name] = [], []
        for place, (key, ground) in enumerate(self.grounds.items()):
            benches = self._benches(name, ground)
            mine = [subject for subject in self.subjects if self.key(subject) == key]
            for subject in mine:
                self.display.say(f"{subject.name}: {name}")
                self.scores[subject.name][name] = measure(
                    subject.circuit.masks,
                    self.frozen.shapes,
                    benches(subject),
                    ground.held,
                    self.settings,
                    own=learned_by(subject, name),
                    minimal=name == (_found_under(subject) if _found_under(subject) in self.wanted else self.wanted[0]),
                )
            if len(self.grounds) > 1:
                self.cross[name] += self._cells(name, key, benches, ground.held)
            if place == 0 and name != LEARNED:
                found = [(subject, benches(subject)) for subject in mine if not subject.control]
                self.curves[name] = curves(found, ground.held, self.settings)

    def _benches(self, name: str, ground: Ground) -> Callable[[Subject], Bench]:
        """The bench of each circuit under one ablation on one task; circuits that may share one do."""
        made: dict[Any, Bench] = {}
        train = ground.data.splits["train"]

        def bench(subject: Subject) -> Bench:
            if own := means_of(subject, name):
                return Bench(self.frozen, own, train, self.passes, self.settings.at_once)
            averaged = self.averaged[subject.name]
            key = id(averaged) if name in (*MEANS, LEARNED) else None
            if key not in made:
                made[key] = make_bench(
                    name,
                    self.frozen,
                    train,
                    averaged.examples(train),
                    averaged.prompts,
                    self.passes,
                    self.settings.at_once,
                )
            return made[key]

        return bench

    def _cells(self, name: str, key: str, benches: Callable[[Subject], Bench], held: Held) -> list[Cell]:
        """Every circuit on one task."""
        whole, groups, cells = held.on(held.full, "test"), {}, {}
        for subject in self.subjects:
            bench = benches(subject)
            groups.setdefault(id(bench), (bench, []))[1].append(subject)
        for bench, together in groups.values():
            own = [learned_by(subject, name) for subject in together]
            found = bench(held.test, [subject.circuit.masks for subject in together], own)
            for index, subject in enumerate(together):
                scores = summarise(found, whole, index)
                cells[subject.name] = Cell(subject.name, key, self.key(subject) == key, scores)
        return [cells[subject.name] for subject in self.subjects]


def _one_model(subjects: Sequence[Subject]) -> Config:
    """The config of the first circuit. Raises UserError unless all name the same model."""
    first = subjects[0]
    for other in subjects[1:]:
        if other.config.model != first.config.model:
            raise UserError(
                f"{other.path}: is of model {other.config.model.path}, {first.path} of {first.config.model.path}; "
                "evaluate circuits of one model at a time, or set --model.path for all"
            )
    return first.config


def _tasks(subjects: Sequence[Subject], others: Sequence[str]) -> dict[str, TaskConfig]:
    """Distinct tasks by a short name of their own, those of the circuits first."""
    found: dict[str, TaskConfig] = {}
    for task in [*(s.task for s in subjects), *(load(path).task for path in others)]:
        if task in found.values():
            continue
        found[unique(Path(task.path).stem if task.path else task.name, found)] = task
    return found


def _found_under(subject: Subject) -> str:
    return subject.circuit.ablation.name


def _ground(
    base: Config, task: TaskConfig, data: TaskData, frozen: FrozenModel, passes: Passes, display: Display
) -> Ground:
    data = keep_solved(base.model_copy(update={"task": task}), frozen, data, passes, display)
    test, off = data.splits["test"], data.splits.get("off_distribution", [])
    with Streams(frozen, ZERO) as streams:
        full = score(streams, [*test, *off], None, passes)
    return Ground(task, data, Held(test, off, full))


def _task(ground: Ground) -> Task:
    held, data = ground.held, ground.data
    test, off = held.on(held.full, "test"), held.on(held.full, "off")
    return Task(
        name=ground.config.path or ground.config.name,
        sha256=data.sha256,
        pairs={name: len(examples) for name, examples in data.splits.items()},
        left_out={"bad": len(data.bad), "unsolved": data.unsolved},
        full=summarise(test, test, 0),
        full_off_distribution=summarise(off, off, 0) if held.off else None,
    )


def _circuit(subject: Subject, task: str, frozen: FrozenModel, scores: dict[str, UnderAblation]) -> EvaluatedCircuit:
    circuit = subject.circuit
    parameters = parameters_kept(frozen, circuit.masks)
    return EvaluatedCircuit(
        name=subject.name,
        file=str(subject.path),
        sha256=sha256(subject.path),
        task=task,
        found_under=_found_under(subject),
        labels=subject.config.task.labels,
        seed=circuit.metadata.get("seed", ""),
        kept=circuit.sizes(),
        parameters_kept=parameters.kept / parameters.total,
        parameters=parameters._asdict(),
        control=subject.control,
        ablations=scores,
    )


def _folder(subject: Subject) -> Path:
    """The run folder of a circuit, or where its file is."""
    return run_of(subject.path) or subject.path.parent
