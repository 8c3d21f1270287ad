"""The end of a run: final circuits, their held-out scores, summary.json, and the table a person reads."""

import json
import resource
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table
from torch import Tensor

from bigcircuit.ablated import Ablation
from bigcircuit.circuit import Circuit
from bigcircuit.config import Config
from bigcircuit.display import Display
from bigcircuit.distributed import Ranks
from bigcircuit.evaluation.examples import predictions
from bigcircuit.evaluation.result import Scores
from bigcircuit.evaluation.scores import ExampleScores, score, summarise
from bigcircuit.finishing import final_ablation
from bigcircuit.frozen.load import fingerprint
from bigcircuit.frozen.parameters import parameters_kept
from bigcircuit.gates.discretise import count, discretise
from bigcircuit.gates.granularity import GRANULARITIES, LEAVES
from bigcircuit.gates.population import node_counts, trained_granularities
from bigcircuit.optimal import Lessons
from bigcircuit.run_folder import RunFolder, versions
from bigcircuit.storage import write_json
from bigcircuit.streams import Streams
from bigcircuit.tasks.data import Reference, TaskData
from bigcircuit.tasks.passes import Passes
from bigcircuit.train_state import TrainState

SCORES = {
    "kl": "KL",
    "logit_difference": "logit diff",
    "recovered": "share",
    "accuracy": "acc.",
    "exact_match": "match",
}
"""Columns of the closing table: score -> heading. KL is in nats, `share` is the logit difference over the full model's, `match`
the share of prompts on which the prediction is the full model's."""


def finish(
    config: Config,
    state: TrainState,
    streams: Streams,
    lessons: tuple[Lessons, Lessons],
    data: TaskData,
    reference: Reference | None,
    tokenizer: Any,
    folder: RunFolder,
    passes: Passes,
    display: Display,
    started: float,
) -> None:
    """Write circuits, summary.json and report.html, and show the closing table. All ranks score, the first one writes.

    lessons: what the gates were trained and validated on. The empty circuit is the first member's ablation alone: where
    constants are learned, it has those of that member.
    """
    population = state.population
    log_alpha = [dict(learner.best.log_alpha) for learner in state.learners]
    masks = [
        discretise(gates, population.shapes, member.config.target.sizes())
        for gates, member in zip(log_alpha, population.members, strict=True)
    ]
    nothing = {name: torch.zeros_like(mask) for name, mask in masks[0].items()}
    examples = data.splits["test"]
    ablation = final_ablation(config, state, streams, masks, *lessons, passes, display)
    with streams.under(ablation.of([*range(len(masks)), 0])):
        circuits = score(streams, examples, [*masks, nothing], passes, full=True)
    full = ExampleScores(*(values[-1:] for values in circuits))
    shown = predictions(streams, masks, ablation, data, tokenizer, passes.size)
    peak = passes.ranks.largest(peak_memory(passes.ranks))
    if not passes.ranks.first:
        return
    rows = []
    for index, kept in enumerate(masks):
        path = folder.circuit(str(index), len(masks))
        scores = summarise(circuits, full, index)
        metadata = describe(config, state, index, data, reference, scores)
        constants = _constants(ablation.of([index]), kept)
        Circuit(kept, {name: values.cpu() for name, values in log_alpha[index].items()}, metadata, constants).save(path)
        rows.append(_member(state, streams, index, kept, scores, str(path.relative_to(folder.path))))
    summary = {
        "model": config.model.path,
        "task": config.task.path or config.task.name,
        "ablation": config.ablation.name,
        "pairs": {name: len(split) for name, split in data.splits.items()},
        "left_out": {"bad": len(data.bad), "unsolved": data.unsolved},
        "nodes": node_counts(population.shapes, list(GRANULARITIES)),
        "members": rows,
        "full": _plain(summarise(full, full, 0)),
        "empty": _plain(summarise(circuits, full, len(masks))),
        "seconds": round(time.monotonic() - started, 1),
        "peak_memory_bytes": peak,
    }
    write_json(folder.examples, shown)
    from bigcircuit.report import render  # its figures take a second to load

    render(folder.path, summary)
    write_json(folder.summary, summary)
    display.show(table(summary, wide=display.console.width >= 130))
    display.say(sentences(summary))
    display.say(
        f"{summary['seconds']} s, peak memory {summary['peak_memory_bytes'] / 2**20:.0f} MiB; see {folder.report}"
    )


def _constants(ablation: Ablation, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The constants of one member for the circuit file: of the sites that have masks, [L, n] or [L, T, n]."""
    sites = {site: c[0] for site, c in (ablation.constants or {}).items() if LEAVES[site] in masks}
    return {site: (c[:, 0] if c.shape[1] == 1 else c).cpu() for site, c in sites.items()}


def describe(
    config: Config,
    state: TrainState,
    index: int,
    data: TaskData,
    reference: Reference | None,
    scores: Scores,
) -> dict[str, str]:
    """Metadata of one member's circuit file: what it was found in, on, with, and how well it does."""
    member = state.population.members[index].config
    base = fingerprint(config.model)
    return {
        "model": config.model.path
        if config.model.path == "embedded"
        else config.model.path.rstrip("/").rsplit("/", 1)[-1],
        "model_revision": config.model.revision or "",
        "model_config_sha256": base["config"],
        "model_weights_sha256": base["weights"],
        "tokenizer_sha256": base["tokenizer"],
        "adapter": config.model.adapter or "",
        "task": config.task.path.rsplit("/", 1)[-1] if config.task.path else config.task.name,
        "task_sha256": data.sha256,
        "ablation": config.ablation.name,
        "ablation_data": (config.ablation.data or "").rsplit("/", 1)[-1],
        "ablation_data_sha256": "" if reference is None else reference.sha256,
        "ablation_prompts": config.ablation.prompts if config.ablation.kind in ("mean", "optimal") else "",
        "metric": "KL(reference || circuit) in nats at the answer positions, test split",
        "granularities": json.dumps(list(trained_granularities(member))),
        "widths": json.dumps(
            {name: [g.width(s) for s in state.population.shapes] for name, g in GRANULARITIES.items()}
        ),
        "seed": str(member.train.seed),
        "step": str(state.learners[index].best.step),
        "targets": json.dumps(member.target.sizes()),
        "scores": json.dumps({config.ablation.name: _plain(scores)}),
        "versions": json.dumps(versions()),
    }


def _member(
    state: TrainState,
    streams: Streams,
    index: int,
    masks: Mapping[str, Tensor],
    scores: Scores,
    path: str,
) -> dict[str, Any]:
    config = state.population.members[index].config
    parameters = parameters_kept(streams.frozen, masks)
    return {
        "member": index,
        "seed": config.train.seed,
        "targets": config.target.sizes(),
        "penalties": {name: weight for name, weight in config.penalty if weight},
        "parametrisation": config.gates.parametrisation,
        "circuit": path,
        "best_step": state.learners[index].best.step,
        "kept": count(masks),
        "parameters_kept": parameters.kept / parameters.total,
        "parameters": parameters._asdict(),
        "scores": _plain(scores),
    }


def _plain(scores: Scores) -> dict[str, dict[str, float | None]]:
    return {name: asdict(score) for name, score in scores.items()}


def peak_memory(ranks: Ranks) -> int:
    """Bytes: the most that was allocated on the GPU, or the largest resident set of this process on CPU."""
    if ranks.device.type == "cuda":
        return torch.cuda.max_memory_allocated(ranks.device)
    try:
        return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        # Not on Linux. It counts in the process that started this one, until it became this one.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def table(summary: Mapping[str, Any], wide: bool) -> Table:
    """The closing table: sizes and held-out means of every circuit beside the full model and the empty circuit.

    wide: with 95% intervals, for terminals of 130 columns or more.
    """
    nodes = summary["nodes"]
    title = f"held-out scores on {summary['pairs']['test']} pairs of {summary['task']}, {summary['ablation']} ablation"
    shown = Table(title=title, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for heading in ("", "neurons", "heads", "param.", *SCORES.values()):
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    shown.add_row("model", str(nodes["total"]), str(nodes["head"]), "100%", *_cells(summary["full"], wide))
    for row in summary["members"]:
        shown.add_row(
            f"circuit {row['member']}" if len(summary["members"]) > 1 else "circuit",
            str(row["kept"]["total"]),
            str(row["kept"]["head"]),
            f"{row['parameters_kept']:.1%}",
            *_cells(row["scores"], wide),
        )
    shown.add_row("empty", "0", "0", "0%", *_cells(summary["empty"], wide))
    return shown


def _cells(scores: Mapping[str, Mapping[str, float]], wide: bool) -> list[str]:
    shown = (scores[name] for name in SCORES)
    return [f"{s['mean']:.3f}" + (f" [{s['low']:.3f}, {s['high']:.3f}]" if wide else "") for s in shown]


def sentences(summary: Mapping[str, Any]) -> str:
    """The result of the first member in words."""
    row, nodes = summary["members"][0], summary["nodes"]
    scores, kept = row["scores"], row["kept"]
    return (
        f"Keeping {kept['total']} of {nodes['total']} neurons ({kept['head']} of {nodes['head']} heads, {kept['mlp']} of "
        f"{nodes['mlp']} MLPs) the model still predicts what the full model predicts on "
        f"{scores['exact_match']['mean']:.0%} of the held-out prompts and prefers the right answer on "
        f"{scores['accuracy']['mean']:.0%} (KL {scores['kl']['mean']:.3f} nats, 95% interval "
        f"{scores['kl']['low']:.3f} to {scores['kl']['high']:.3f})."
    )
