"""Scores of all circuits, ablation by ablation, and the evaluation they make up."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bigcircuit.ablation.ablation import ZERO
from bigcircuit.ablation.kinds import KINDS
from bigcircuit.circuit.controls import empty
from bigcircuit.config.schema import TaskConfig
from bigcircuit.data.dataset import TaskData
from bigcircuit.evaluation.ablation_constants import means_info, saved_means
from bigcircuit.evaluation.circuit_scores import HeldOut, circuit_scores
from bigcircuit.evaluation.curves import measure_curves
from bigcircuit.evaluation.open_circuits import LoadedCircuit
from bigcircuit.evaluation.plan import EvaluationPlan, found_under
from bigcircuit.evaluation.scorer import Scorer, make_scorer
from bigcircuit.forward.streams import Streams
from bigcircuit.io.files import file_sha256
from bigcircuit.io.provenance import versions
from bigcircuit.metrics.predictions import example_predictions
from bigcircuit.metrics.score import score, summarise
from bigcircuit.model.fingerprint import fingerprint
from bigcircuit.model.parameter_count import count_parameters
from bigcircuit.model.sites import FrozenModel
from bigcircuit.results.evaluation import Cell, Curve, EvaluatedCircuit, Evaluation, Task, UnderAblation
from bigcircuit.runtime.progress import ProgressDisplay
from bigcircuit.train.pair_filters import keep_solved


class EvaluatedTask(NamedTuple):
    """One task and what the full model does on its held-out pairs."""

    config: TaskConfig
    data: TaskData
    held: HeldOut


def score_full_model(asked: EvaluationPlan, key: str, frozen: FrozenModel, progress: ProgressDisplay) -> EvaluatedTask:
    """The ground of one task: what the full model does. Raises UserError if it solves no pair, where that is asked for."""
    task = asked.tasks[key]
    data = keep_solved(
        asked.base.model_copy(update={"task": task}), frozen, asked.data[key], asked.micro_batches, progress
    )
    test, off = data.splits["test"], data.splits.get("off_distribution", [])
    with Streams(frozen, ZERO) as streams:
        full = score(streams, [*test, *off], None, asked.micro_batches)
    return EvaluatedTask(task, data, HeldOut(test, off, full))


@dataclass
class EvaluationRunner:
    """Collects what is found."""

    asked: EvaluationPlan
    frozen: FrozenModel
    grounds: Mapping[str, EvaluatedTask]
    progress: ProgressDisplay
    scores: dict[str, dict[str, UnderAblation]] = field(default_factory=dict)
    """By circuit and ablation."""
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    cross: dict[str, list[Cell]] = field(default_factory=dict)
    curves: dict[str, list[Curve]] = field(default_factory=dict)
    no_curves: list[str] = field(default_factory=list)

    def under(self, name: str) -> None:
        """Everything under one ablation."""
        self.cross[name], self.curves[name] = [], []
        for place, (key, ground) in enumerate(self.grounds.items()):
            benches = self._benches(name, ground)
            mine = [subject for subject in self.asked.subjects if self.asked.key(subject) == key]
            for subject in mine:
                self.scores.setdefault(subject.name, {})[name] = self._measured(subject, name, benches(subject), ground)
            if len(self.grounds) > 1:
                self.progress.print_line(f"{name}: every circuit on {key}")
                self.cross[name] += self._cells(name, key, benches, ground.held)
            if place == 0 and not KINDS[name].learned:
                self._draw([(s, benches(s)) for s in mine if not s.control], name, ground.held)

    def _measured(self, subject: LoadedCircuit, name: str, bench: Scorer, ground: EvaluatedTask) -> UnderAblation:
        self.progress.print_line(f"{subject.name}: {name}")
        main = name == self.asked.main(subject)
        if main:
            self.examples[subject.name] = self._examples(subject, bench, ground.data, name)
        return circuit_scores(
            subject.circuit.masks,
            self.frozen.shapes,
            bench,
            ground.held,
            self.asked.settings,
            own=self.asked.own(subject, name),
            minimal=main,
            means=means_info(subject, name, self.asked.averaged[subject.name], ground.data.sha256),
            say=self.progress.print_line,
        )

    def _draw(self, found: Sequence[tuple[LoadedCircuit, Scorer]], name: str, held: HeldOut) -> None:
        self.curves[name], missing = measure_curves(found, held, self.asked.settings, self.progress.print_line)
        for sentence in missing:
            if sentence not in self.no_curves:
                self.progress.print_line(sentence)
                self.no_curves.append(sentence)

    def _benches(self, name: str, ground: EvaluatedTask) -> Callable[[LoadedCircuit], Scorer]:
        """The bench of each circuit under one ablation on one task; circuits that may share one do."""
        made: dict[Any, Scorer] = {}
        train, micro_batches, at_once = (
            ground.data.splits["train"],
            self.asked.micro_batches,
            self.asked.settings.at_once,
        )

        def bench(subject: LoadedCircuit) -> Scorer:
            if own := saved_means(subject, name):
                return Scorer(self.frozen, own, train, micro_batches, at_once)
            averaged = self.asked.averaged[subject.name]
            key = id(averaged) if KINDS[name].needs_moments else None
            if key not in made:
                over = averaged.examples(train)
                made[key] = make_scorer(name, self.frozen, train, over, averaged.prompts, micro_batches, at_once)
            return made[key]

        return bench

    def _examples(self, subject: LoadedCircuit, bench: Scorer, data: TaskData, name: str) -> list[dict[str, Any]]:
        """What a circuit predicts on a few held-out prompts."""
        ablation = self.asked.own(subject, name) or bench.ablation
        assert (
            ablation is not None
        )  # single nodes are looked at under kinds whose constants are known, see EvaluationPlan.main
        ablation = ablation.to(self.frozen.device)
        with Streams(self.frozen, ablation) as streams:
            found = example_predictions(
                streams,
                [subject.circuit.masks],
                ablation,
                data,
                self.asked.model.tokenizer,
                self.asked.micro_batches.max_examples,
            )
        return found["members"][0]

    def _cells(self, name: str, key: str, benches: Callable[[LoadedCircuit], Scorer], held: HeldOut) -> list[Cell]:
        """Every circuit on one task."""
        whole, groups, cells = held.on(held.full, "test"), {}, {}
        for subject in self.asked.subjects:
            bench = benches(subject)
            groups.setdefault(id(bench), (bench, []))[1].append(subject)
        for bench, together in groups.values():
            own = [self.asked.own(subject, name) for subject in together]
            masks = [subject.circuit.masks for subject in together]
            found = bench(held.test, [*masks, *map(empty, masks[:1])], own)
            for index, subject in enumerate(together):
                scores = summarise(found, whole, index, found.circuit(-1))
                cells[subject.name] = Cell(subject.name, key, self.asked.key(subject) == key, scores)
        return [cells[subject.name] for subject in self.asked.subjects]

    def result(self, seconds: float) -> Evaluation:
        """What is known by now, without a verdict."""
        asked = self.asked
        model = fingerprint(asked.base.model) if asked.micro_batches.ranks.is_first else {}
        return Evaluation(
            model={"path": asked.base.model.path} | model,
            nodes=asked.model.nodes,
            tasks={key: _task(ground) for key, ground in self.grounds.items()},
            circuits=[self._circuit(subject) for subject in asked.subjects],
            cross=self.cross if len(self.grounds) > 1 else {},
            curves=self.curves,
            no_curves=self.no_curves,
            unfinished=[name for name in asked.ablations if name not in self.curves],
            verdict="",
            settings=asked.settings.model_dump(mode="json"),
            command=sys.argv,
            versions=versions(),
            seconds=round(seconds, 1),
        )

    def _circuit(self, subject: LoadedCircuit) -> EvaluatedCircuit:
        circuit = subject.circuit
        parameters = count_parameters(self.frozen, circuit.masks)
        return EvaluatedCircuit(
            name=subject.name,
            file=str(subject.path),
            sha256=file_sha256(subject.path),
            task=self.asked.key(subject),
            found_under=found_under(subject),
            labels=subject.config.task.labels,
            seed=circuit.metadata.get("seed", ""),
            kept=circuit.sizes(),
            parameters_kept=parameters.kept / parameters.total,
            parameters=parameters._asdict(),
            examples=self.examples.get(subject.name, []),
            control=subject.control,
            ablations=self.scores[subject.name],
        )


def _task(ground: EvaluatedTask) -> Task:
    held, data = ground.held, ground.data
    test, off = held.on(held.full, "test"), held.on(held.full, "off")
    return Task(
        name=ground.config.path or ground.config.name,
        sha256=data.sha256,
        pairs={name: len(examples) for name, examples in data.splits.items()},
        left_out={"bad": len(data.bad), "unsolved": data.unsolved},
        # The full model recovers all of itself, whatever the empty circuit does.
        full=summarise(test, test, 0),
        full_off_distribution=summarise(off, off, 0) if held.off else None,
    )
