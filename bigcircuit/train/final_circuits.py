"""Final circuits of a run, their held-out scores and their metadata."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.ablation.kinds import KINDS
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.metadata import model_metadata
from bigcircuit.forward.reference_logits import Targets
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import count
from bigcircuit.gates.members import trained_granularities
from bigcircuit.io.provenance import versions
from bigcircuit.metrics.predictions import example_predictions
from bigcircuit.metrics.registry import Scores
from bigcircuit.metrics.score import score, summarise
from bigcircuit.model.granularity import LEAVES
from bigcircuit.model.load import attention_of
from bigcircuit.model.parameter_count import count_parameters
from bigcircuit.runtime.host_memory import peak_memory
from bigcircuit.train.fingerprint import MODEL_PARTS
from bigcircuit.train.layer_sizes import sized_masks
from bigcircuit.train.optimal_ablation import final_ablation
from bigcircuit.train.setup import RunContext
from bigcircuit.train.state import MemberState, TrainState


class RunResult(NamedTuple):
    """Result of a run: one circuit, summary row and list of predictions per member."""

    circuits: list[Circuit]
    members: list[dict[str, Any]]
    """Rows of the summary, without the names of the circuit files."""
    examples: list[Any]
    """Predictions on a few held-out prompts, see metrics/predictions.py."""
    shared: dict[str, Any]
    """The rest of the summary."""

    def summary(self, files: Sequence[str], seconds: float) -> dict[str, Any]:
        """Make the content of summary.json."""
        rows = [{**row, "circuit": file} for row, file in zip(self.members, files, strict=True)]
        return {**self.shared, "members": rows, "seconds": round(seconds, 1)}

    def alone(self, index: int) -> "RunResult":
        """Select the result of one member, as a run with that member alone has it."""
        return RunResult(
            [self.circuits[index]], [{**self.members[index], "member": 0}], [self.examples[index]], self.shared
        )


def final_circuits(context: RunContext, state: TrainState, targets: tuple[Targets, Targets]) -> RunResult:
    """Discretise the best gates of all members and score them on held-out pairs; the same on all ranks. Within the streams.

    targets: of training and of validation. The empty circuit is the first member's ablation alone: where
    constants are learned, it has those of that member.
    """
    config, data, streams, micro_batches = context.config, context.data, context.streams, context.micro_batches
    log_alpha = [dict(member_state.best.log_alpha) for member_state in state.member_states]
    masks = [
        sized_masks(gates, streams.frozen, member_state.member.config.target)
        for gates, member_state in zip(log_alpha, state.member_states, strict=True)
    ]
    nothing = {name: torch.zeros_like(mask) for name, mask in masks[0].items()}
    ablation = final_ablation(config, state, streams, masks, *targets, micro_batches)
    with streams.under(ablation.of([*range(len(masks)), 0])):
        found = score(
            streams, data.splits["test"], [*masks, nothing], micro_batches, full=True, phase="held-out scores"
        )
    full, empty = found.circuit(-1), found.circuit(len(masks))
    shown = example_predictions(streams, masks, ablation, data, context.run.model.tokenizer, micro_batches)
    circuits, rows = [], []
    for index, kept in enumerate(masks):
        scores = summarise(found, full, index, empty)
        cpu = {name: values.cpu() for name, values in log_alpha[index].items()}
        metadata = describe(context, state.member_states[index], scores)
        circuits.append(Circuit(kept, cpu, metadata, **_tensors(ablation.of([index]), kept)))
        rows.append(_member(state.member_states[index], streams, index, kept, scores))
    shared = {
        "model": config.model.path,
        "quantization": context.run.model.quantization.line or "",
        "task": config.task.path or config.task.name,
        "ablation": config.ablation.name,
        "pairs": {name: len(split) for name, split in data.splits.items()},
        "left_out": {"bad": len(data.bad), "unsolved": data.unsolved},
        "nodes": context.nodes,
        "full": _plain(summarise(full, full, 0, empty)),
        "empty": _plain(summarise(found, full, len(masks), empty)),
        "threads": torch.get_num_threads(),
        "peak_memory_bytes": micro_batches.ranks.maximum(peak_memory(micro_batches.ranks)),
    }
    return RunResult(circuits, rows, shown["members"], shared)


def _tensors(ablation: Ablation, masks: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Select the ablation's tensors of one member for the circuit file: of sites with masks, [L, n] or [L, T, n]."""
    return {
        part: {
            site: (c[0, :, 0] if c.shape[2] == 1 else c[0]).cpu() for site, c in found.items() if LEAVES[site] in masks
        }
        for part, found in ablation.tensors().items()
    }


def describe(context: RunContext, member_state: MemberState, scores: Scores) -> dict[str, str]:
    """Make the metadata of one member's circuit file: model, task, ablation, settings and held-out scores."""
    config, reference, model = context.config, context.run.ablation_data, context.run.model
    member = member_state.member.config
    hashes = {part: context.run.fingerprint[name] for part, name in MODEL_PARTS.items()}
    opened = {
        "quantization": model.quantization.line,
        "language_model": model.whole_config and model.hf_config.model_type,
    }
    return model_metadata(config.model, hashes, context.streams.frozen.shapes) | {
        **{key: value for key, value in opened.items() if value},
        "attention": attention_of(context.streams.frozen),
        "device": context.streams.frozen.device.type,
        "task": config.task.path.rsplit("/", 1)[-1] if config.task.path else config.task.name,
        "task_sha256": context.data.sha256,
        "task_tokens_sha256": context.data.tokens_sha256,
        "held_out_sha256": context.data.held_out_sha256,
        "ablation": config.ablation.name,
        "ablation_data": (config.ablation.data or "").rsplit("/", 1)[-1],
        "ablation_data_sha256": "" if reference is None else reference.sha256,
        "ablation_prompts": config.ablation.prompts if KINDS[config.ablation.name].needs_moments else "",
        "metric": "KL(reference || circuit) in nats at the answer positions, test split",
        "granularities": json.dumps(list(trained_granularities(member))),
        "seed": str(member.train.seed),
        "step": str(member_state.best.step),
        "targets": json.dumps(member.target.sizes()),
        **({"layout": json.dumps(layout)} if (layout := member.target.layout()) else {}),
        "scores": json.dumps({config.ablation.name: _plain(scores)}),
        "versions": json.dumps(versions()),
        "threads": str(torch.get_num_threads()),
    }


def _member(
    member_state: MemberState, streams: Streams, index: int, masks: Mapping[str, Tensor], scores: Scores
) -> dict[str, Any]:
    config = member_state.member.config
    parameters = count_parameters(streams.frozen, masks)
    return {
        "member": index,
        "seed": config.train.seed,
        "targets": config.target.sizes(),
        "layout": config.target.layout(),
        "penalties": {name: weight for name, weight in config.penalty if weight},
        "parametrisation": config.gates.parametrisation,
        "best_step": member_state.best.step,
        "kept": count(masks),
        "parameters_kept": parameters.kept / parameters.total,
        "parameters": parameters._asdict(),
        "scores": _plain(scores),
    }


def _plain(scores: Scores) -> dict[str, dict[str, float | None]]:
    return {name: asdict(score) for name, score in scores.items()}
