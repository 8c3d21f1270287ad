"""Evaluation of all circuits, ablation by ablation and task by task, and the Evaluation that results."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bigcircuit.ablation.ablation import ZERO
from bigcircuit.ablation.kinds import KINDS
from bigcircuit.circuit.controls import empty
from bigcircuit.config.schema import TaskConfig
from bigcircuit.data.dataset import TaskData
from bigcircuit.errors import UserError
from bigcircuit.evaluation.circuit_scores import HeldOut, circuit_scores
from bigcircuit.evaluation.curves import measure_curves
from bigcircuit.evaluation.inside import look_inside
from bigcircuit.evaluation.open_circuits import LoadedCircuit
from bigcircuit.evaluation.plan import EvaluationPlan
from bigcircuit.evaluation.scorer import Scorer, ScoringContext, make_scorer
from bigcircuit.forward.kept_passes import KeptPasses
from bigcircuit.forward.streams import Streams
from bigcircuit.io.files import file_sha256
from bigcircuit.io.provenance import versions
from bigcircuit.metrics.predictions import example_predictions
from bigcircuit.metrics.score import score, summarise
from bigcircuit.model.fingerprint import fingerprint
from bigcircuit.model.parameter_count import count_parameters
from bigcircuit.model.sites import FrozenModel
from bigcircuit.results.evaluation import Cell, Curve, EvaluatedCircuit, Evaluation, Task, UnderAblation
from bigcircuit.runtime.progress import Phase, ProgressDisplay
from bigcircuit.train.pair_filters import complete_data


class EvaluatedTask(NamedTuple):
    """A task, its pairs, and the scores of the full model on its held-out pairs."""

    config: TaskConfig
    data: TaskData
    held_out: HeldOut


def score_full_model(plan: EvaluationPlan, name: str, frozen: FrozenModel) -> EvaluatedTask:
    """Score the full model on one task. Raises UserError if `task.keep` is `solved` and the model solves no pair."""
    task = plan.tasks[name]
    config = plan.config.model_copy(update={"task": task})
    data = complete_data(config, frozen, plan.data[name], plan.micro_batches)
    for loaded in plan.circuits if task.text.generate and not plan.settings.any_model else ():
        known = loaded.circuit.metadata.get("task_tokens_sha256")
        if plan.task_of(loaded) == name and known and known != data.tokens_sha256:
            raise UserError(
                f"{loaded.path}: the model writes other samples here than where the circuit was found (hash {known[:12]}, now "
                f"{data.tokens_sha256[:12]}), so training text may be held out; set --any_model true to score it on these"
            )
    test, off = data.splits["test"], data.splits.get("off_distribution", [])
    with Streams(frozen, ZERO) as streams:
        full = score(streams, [*test, *off], None, plan.micro_batches, phase=f"full model on {name}")
    return EvaluatedTask(task, data, HeldOut(test, off, full))


@dataclass
class EvaluationRunner:
    """Evaluates all circuits under one ablation at a time, and collects the results."""

    plan: EvaluationPlan
    frozen: FrozenModel
    tasks: Mapping[str, EvaluatedTask]
    """Short name -> task, as in the plan."""
    progress: ProgressDisplay
    scores: dict[str, dict[str, UnderAblation]] = field(default_factory=dict)
    """By circuit and ablation."""
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By circuit."""
    inside: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By circuit."""
    cross: dict[str, list[Cell]] = field(default_factory=dict)
    """By ablation."""
    curves: dict[str, list[Curve]] = field(default_factory=dict)
    """By ablation."""
    no_curves: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        train = self.plan.config.train
        self.kept = KeptPasses(train.store_memory) if train.store else None

    def evaluate_under(self, ablation: str) -> None:
        """Evaluate all circuits on all tasks under one ablation."""
        with self.progress.phase(f"{ablation} ablation", len(self.plan.circuits), "circuits") as done:
            self._evaluate_under(ablation, done)

    def _evaluate_under(self, ablation: str, done: Phase) -> None:
        self.cross[ablation], self.curves[ablation] = [], []
        for place, (name, task) in enumerate(self.tasks.items()):
            scorer_of = self._scorers(ablation, task)
            found_on_task = [loaded for loaded in self.plan.circuits if self.plan.task_of(loaded) == name]
            for loaded in found_on_task:
                under = self._score_circuit(loaded, ablation, scorer_of(loaded), task)
                self.scores.setdefault(loaded.name, {})[ablation] = under
                done.advance()
            if len(self.tasks) > 1:
                self.progress.print_line(f"{ablation}: every circuit on {name}")
                self.cross[ablation] += self._cells(ablation, name, scorer_of)
            if place == 0 and not KINDS[ablation].learned:
                pairs = [(loaded, scorer_of(loaded)) for loaded in found_on_task if not loaded.control]
                self._measure_curves(ablation, pairs, task.held_out)

    def _scorers(self, ablation: str, task: EvaluatedTask) -> Callable[[LoadedCircuit], Scorer]:
        """Make a function that gives the scorer of each circuit; circuits whose constants have the same origin share a scorer."""
        context = ScoringContext(
            frozen=self.frozen,
            train=task.data.splits["train"],
            micro_batches=self.plan.micro_batches,
            at_once=self.plan.settings.at_once,
            kept=self.kept,
            names={name for loaded in self.plan.circuits for name in loaded.circuit.masks},
        )
        made: dict[int, Scorer] = {}

        def scorer_of(loaded: LoadedCircuit) -> Scorer:
            constants = self.plan.constants[loaded.name, ablation]
            origin = id(constants.data or constants.saved)
            if origin not in made:
                made[origin] = make_scorer(ablation, context, constants)
            return made[origin]

        return scorer_of

    def _score_circuit(
        self, loaded: LoadedCircuit, ablation: str, scorer: Scorer, task: EvaluatedTask
    ) -> UnderAblation:
        """Score one circuit on its task; under its main ablation with example predictions and minimality."""
        self.progress.print_line(f"{loaded.name}: {ablation}")
        constants = self.plan.constants[loaded.name, ablation]
        is_main = ablation == self.plan.main_ablation(loaded)
        if is_main:
            self.examples[loaded.name] = self._predictions(loaded, ablation, scorer, task.data)
        found = circuit_scores(
            dict(loaded.circuit.masks),
            self.frozen.shapes,
            scorer,
            task.held_out,
            self.plan.settings,
            own=constants.saved,
            minimal=is_main,
            means=constants.source,
            print_line=self.progress.print_line,
        )
        if is_main:
            tokenizer = self.plan.model.tokenizer
            self.inside[loaded.name] = look_inside(self.frozen, found.minimality, task.held_out.test, tokenizer)
        return found

    def _predictions(
        self, loaded: LoadedCircuit, ablation: str, scorer: Scorer, data: TaskData
    ) -> list[dict[str, Any]]:
        """Predict the answers of a few held-out prompts by a circuit."""
        chosen = (self.plan.constants[loaded.name, ablation].saved or scorer.ablation).to(self.frozen.device)
        with Streams(self.frozen, chosen) as streams:
            found = example_predictions(
                streams,
                [loaded.circuit.masks],
                chosen,
                data,
                self.plan.model.tokenizer,
                self.plan.micro_batches,
            )
        return found["members"][0]

    def _cells(self, ablation: str, name: str, scorer_of: Callable[[LoadedCircuit], Scorer]) -> list[Cell]:
        """Score every circuit on the task of this name. Circuits that share a scorer are scored together."""
        held_out = self.tasks[name].held_out
        full = held_out.on(held_out.full, "test")
        groups: dict[int, tuple[Scorer, list[LoadedCircuit]]] = {}
        for loaded in self.plan.circuits:
            scorer = scorer_of(loaded)
            groups.setdefault(id(scorer), (scorer, []))[1].append(loaded)
        cells = {}
        for scorer, together in groups.values():
            known = [self.plan.constants[loaded.name, ablation].saved for loaded in together]
            masks = [dict(loaded.circuit.masks) for loaded in together]
            scores = scorer(held_out.test, [*masks, empty(masks[0])], known, phase=f"every circuit on {name}")
            for index, loaded in enumerate(together):
                is_own = self.plan.task_of(loaded) == name
                summary = summarise(scores, full, index, scores.circuit(-1))
                cells[loaded.name] = Cell(loaded.name, name, is_own, summary)
        return [cells[loaded.name] for loaded in self.plan.circuits]

    def _measure_curves(
        self, ablation: str, circuits: Sequence[tuple[LoadedCircuit, Scorer]], held_out: HeldOut
    ) -> None:
        """Measure the curves of the first task, and say once for each curve that cannot be measured why."""
        self.curves[ablation], missing = measure_curves(
            circuits, held_out, self.plan.settings, self.progress.print_line
        )
        for sentence in missing:
            if sentence not in self.no_curves:
                self.progress.print_line(sentence)
                self.no_curves.append(sentence)

    def result(self, seconds: float) -> Evaluation:
        """Collect what is measured so far, without a verdict."""
        plan = self.plan
        model = fingerprint(plan.config.model, self.progress) if plan.micro_batches.ranks.is_first else {}
        return Evaluation(
            model={"path": plan.config.model.path} | model,
            nodes=plan.model.nodes,
            tasks={name: _summarise_task(task) for name, task in self.tasks.items()},
            circuits=[self._describe(loaded) for loaded in plan.circuits],
            cross=self.cross if len(self.tasks) > 1 else {},
            curves=self.curves,
            no_curves=self.no_curves,
            unfinished=[name for name in plan.ablations if name not in self.curves],
            verdict="",
            settings=plan.settings.model_dump(mode="json"),
            command=sys.argv,
            versions=versions(),
            seconds=round(seconds, 1),
            inside={name: one for name, one in self.inside.items() if one.get("heads") or one.get("neurons")},
        )

    def _describe(self, loaded: LoadedCircuit) -> EvaluatedCircuit:
        """Describe a circuit for evaluation.json: origin, size, scores."""
        circuit = loaded.circuit
        parameters = count_parameters(self.frozen, circuit.masks)
        return EvaluatedCircuit(
            name=loaded.name,
            file=str(loaded.path),
            sha256=file_sha256(loaded.path),
            task=self.plan.task_of(loaded),
            found_under=loaded.found_under,
            labels=loaded.config.task.labels,
            seed=circuit.metadata.get("seed", ""),
            kept=circuit.sizes(),
            parameters_kept=parameters.kept / parameters.total,
            parameters=parameters._asdict(),
            examples=self.examples.get(loaded.name, []),
            control=loaded.control,
            ablations=self.scores[loaded.name],
        )


def _summarise_task(task: EvaluatedTask) -> Task:
    held_out, data = task.held_out, task.data
    test, off = held_out.on(held_out.full, "test"), held_out.on(held_out.full, "off")
    return Task(
        name=task.config.path or task.config.name,
        sha256=data.sha256,
        pairs={name: len(examples) for name, examples in data.splits.items()},
        left_out={"bad": len(data.bad), "unsolved": data.unsolved},
        # The full model recovers all of itself, whatever the empty circuit does.
        full=summarise(test, test, 0),
        full_off_distribution=summarise(off, off, 0) if held_out.off else None,
    )
