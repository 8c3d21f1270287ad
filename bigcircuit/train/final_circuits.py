"""What a run found: final circuits, their held-out scores, where they come from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.metadata import model_metadata
from bigcircuit.forward.reference_logits import Targets
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import count, discretise
from bigcircuit.gates.members import trained_granularities
from bigcircuit.io.provenance import versions
from bigcircuit.metrics.predictions import example_predictions
from bigcircuit.metrics.registry import Scores
from bigcircuit.metrics.score import ExampleScores, score, summarise
from bigcircuit.model.granularity import LEAVES
from bigcircuit.model.parameter_count import parameters_kept
from bigcircuit.runtime.host_memory import peak_memory
from bigcircuit.runtime.progress import ProgressDisplay
from bigcircuit.train.optimal_ablation import final_ablation
from bigcircuit.train.setup import RunContext
from bigcircuit.train.state import MemberState, TrainState


class RunResult(NamedTuple):
    """Member by member."""

    circuits: list[Circuit]
    members: list[dict[str, Any]]
    """Rows of the summary, without the names of the circuit files."""
    examples: list[Any]
    """Predictions on a few held-out prompts, see evaluation/examples.py."""
    shared: dict[str, Any]
    """The rest of the summary."""

    def summary(self, files: Sequence[str], seconds: float) -> dict[str, Any]:
        """The content of summary.json."""
        rows = [{**row, "circuit": file} for row, file in zip(self.members, files, strict=True)]
        return {**self.shared, "members": rows, "seconds": round(seconds, 1)}

    def alone(self, index: int) -> "RunResult":
        """One member as if it had been alone."""
        return RunResult(
            [self.circuits[index]], [{**self.members[index], "member": 0}], [self.examples[index]], self.shared
        )


def final_circuits(
    ground: RunContext, state: TrainState, lessons: tuple[Targets, Targets], display: ProgressDisplay
) -> RunResult:
    """Final circuits of all members and their held-out scores, the same on all ranks. Within the streams.

    lessons: what the gates were trained and validated on. The empty circuit is the first member's ablation alone: where
    constants are learned, it has those of that member.
    """
    config, data, streams, passes = ground.config, ground.data, ground.streams, ground.passes
    population = state.population
    log_alpha = [dict(learner.best.log_alpha) for learner in state.learners]
    masks = [
        discretise(gates, population.shapes, learner.member.config.target.sizes())
        for gates, learner in zip(log_alpha, state.learners, strict=True)
    ]
    nothing = {name: torch.zeros_like(mask) for name, mask in masks[0].items()}
    ablation = final_ablation(config, state, streams, masks, *lessons, passes, display)
    with streams.under(ablation.of([*range(len(masks)), 0])):
        found = score(streams, data.splits["test"], [*masks, nothing], passes, full=True)
    full, empty = ExampleScores(*(values[-1:] for values in found)), found.logit_difference[len(masks)]
    shown = example_predictions(streams, masks, ablation, data, ground.prepared.tokenizer, passes.size)
    circuits, rows = [], []
    for index, kept in enumerate(masks):
        scores = summarise(found, full, index, empty)
        cpu = {name: values.cpu() for name, values in log_alpha[index].items()}
        constants = _constants(ablation.of([index]), kept)
        circuits.append(Circuit(kept, cpu, describe(ground, state.learners[index], scores), constants))
        rows.append(_member(state.learners[index], streams, index, kept, scores))
    shared = {
        "model": config.model.path,
        "task": config.task.path or config.task.name,
        "ablation": config.ablation.name,
        "pairs": {name: len(split) for name, split in data.splits.items()},
        "left_out": {"bad": len(data.bad), "unsolved": data.unsolved},
        "nodes": ground.nodes,
        "full": _plain(summarise(full, full, 0, empty)),
        "empty": _plain(summarise(found, full, len(masks), empty)),
        "peak_memory_bytes": passes.ranks.largest(peak_memory(passes.ranks)),
    }
    return RunResult(circuits, rows, shown["members"], shared)


def _constants(ablation: Ablation, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The constants of one member for the circuit file: of the sites that have masks, [L, n] or [L, T, n]."""
    sites = {site: c[0] for site, c in (ablation.constants or {}).items() if LEAVES[site] in masks}
    return {site: (c[:, 0] if c.shape[1] == 1 else c).cpu() for site, c in sites.items()}


def describe(ground: RunContext, learner: MemberState, scores: Scores) -> dict[str, str]:
    """Metadata of one member's circuit file: what it was found in, on, with, and how well it does."""
    config, reference = ground.config, ground.prepared.reference
    member = learner.member.config
    hashes = {part: ground.prepared.base[f"model {part}"] for part in ("config", "weights", "tokenizer")}
    return model_metadata(config.model, hashes, ground.streams.frozen.shapes) | {
        "task": config.task.path.rsplit("/", 1)[-1] if config.task.path else config.task.name,
        "task_sha256": ground.data.sha256,
        "ablation": config.ablation.name,
        "ablation_data": (config.ablation.data or "").rsplit("/", 1)[-1],
        "ablation_data_sha256": "" if reference is None else reference.sha256,
        "ablation_prompts": config.ablation.prompts if config.ablation.kind in ("mean", "optimal") else "",
        "metric": "KL(reference || circuit) in nats at the answer positions, test split",
        "granularities": json.dumps(list(trained_granularities(member))),
        "seed": str(member.train.seed),
        "step": str(learner.best.step),
        "targets": json.dumps(member.target.sizes()),
        "scores": json.dumps({config.ablation.name: _plain(scores)}),
        "versions": json.dumps(versions()),
    }


def _member(
    learner: MemberState, streams: Streams, index: int, masks: Mapping[str, Tensor], scores: Scores
) -> dict[str, Any]:
    config = learner.member.config
    parameters = parameters_kept(streams.frozen, masks)
    return {
        "member": index,
        "seed": config.train.seed,
        "targets": config.target.sizes(),
        "penalties": {name: weight for name, weight in config.penalty if weight},
        "parametrisation": config.gates.parametrisation,
        "best_step": learner.best.step,
        "kept": count(masks),
        "parameters_kept": parameters.kept / parameters.total,
        "parameters": parameters._asdict(),
        "scores": _plain(scores),
    }


def _plain(scores: Scores) -> dict[str, dict[str, float | None]]:
    return {name: asdict(score) for name, score in scores.items()}
