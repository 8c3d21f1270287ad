"""Prune models on general text and compare held-out perplexities with methods of the literature, at equal parameters.

python -m benchmarks.text MODEL [MODEL ...] [--output FOLDER] [--documents N] [--window TOKENS] [--batch_size WINDOWS]
    [--steps UPDATES] [--recover UPDATES] [--weight_lr RATE]

Each model writes its own corpus (task.text.generate), half of whose documents are held out. One population, a circuit for each
share of the parameters, learns masks of heads and MLP neurons and what closed ones output (optimal ablation). Every baseline scores
heads and MLP neurons on the training windows, and keeps the best of them, with at least as many parameters as the learned circuit:
over all layers; as many in every layer; in each layer as many heads as the learned circuit, and MLP neurons in its proportions; or
in each layer as many groups of keys and values, heads and MLP neurons as the learned circuit, which are exactly as many parameters.
Under zero or mean ablation. Which of these eight counts for a baseline is chosen on the validation documents. A second ratio is to
the baselines that divide a size over the layers themselves (the first two) and so need nothing of the learned circuit. The learned
circuit and the best baseline are then exported (`compact`) and fine-tuned by `bigcircuit recover` on the training windows, with the
same settings; step and learning rate, of two, are chosen on the validation documents. With --weight_lr circuits are learned once
more, one a run, beside a copy of the weights that learns along (train.weight_lr), for 1,000 updates, and recovered too. The command
resumes.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bigcircuit.ablation.ablation import ZERO, Ablation
from bigcircuit.attribution.baselines import BASELINES, LEARNED_GATES, METHOD_LABELS
from bigcircuit.attribution.node_scores import NodeScores
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.masks import complete_masks
from bigcircuit.config.load import load
from bigcircuit.data.pair import Example
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.export.config import ExportSettings
from bigcircuit.export.export import export_circuit
from bigcircuit.forward.activation_means import mean_ablation
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import Masks, count, discretise
from bigcircuit.io.files import write_bytes, write_json
from bigcircuit.metrics.score import score, summarise
from bigcircuit.model.granularity import LayerShape
from bigcircuit.model.parameter_count import count_parameters
from bigcircuit.model.sites import FrozenModel
from bigcircuit.prune import prune
from bigcircuit.recover.config import RecoverSettings
from bigcircuit.recover.folder import RECOVER_FILE
from bigcircuit.recover.recover import recover
from bigcircuit.train.pair_filters import complete_data
from bigcircuit.train.resolve import resolve

TABLE = Path(__file__).with_suffix(".md")
REMOVED = (0.2, 0.35, 0.5)
"""Shares of the parameters of the layers that are removed."""
BASELINE_SETS = {
    "methods": ("ratio", "best baseline"),
    "own_sizes": ("ratio, baselines with layer sizes of their own", "best baseline with layer sizes of its own"),
}
"""Sets of baselines -> what the table calls the ratio to their best, and their best."""
RATES = (1e-3, 1e-4)
"""Learning rates of a recovery: the small model wants the high one, the larger the low one."""
ALONG_STEPS = 1000
"""Updates of gates beside weights that learn along."""
METHODS = ("weight_magnitude", "activation_magnitude", "taylor", "fluctuation", "block_influence", "random")
PRESET = Path(__file__).parents[1] / "configs/presets/text.yaml"


class Candidate(NamedTuple):
    """A circuit of a baseline."""

    method: str
    removed: float
    structure: str
    ablation: Ablation
    masks: Masks


def run_settings(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Settings of the run of a model: one member a share, all in one pass."""
    return {
        "model.path": model,
        "task.name": "text",
        "task.text.window": arguments.window,
        "output": str(arguments.output / Path(model).name),
        "population.members": [{"target.parameters": round(1 - share, 4)} for share in REMOVED],
        "task.text.generate": arguments.documents,
        "train.steps": arguments.steps,
        "train.validate_every": max(arguments.steps // 4, 1),
        "train.batch_size": arguments.batch_size,
    }


def unit_scores(scores: NodeScores, shapes: Sequence[LayerShape]) -> dict[str, Tensor]:
    """Score heads by the mean over their neurons, so that they stand beside MLP neurons: float32 [L, n] by granularity."""
    heads = scores["attention_neuron"].unflatten(1, (shapes[0].heads, -1)).mean(-1)
    return {"head": heads, "mlp_neuron": scores["mlp_neuron"]}


def best_in_layers(
    scores: Mapping[str, Tensor], counts: Mapping[str, Sequence[int]], shapes: Sequence[LayerShape]
) -> Masks:
    """Keep the best nodes of each layer, as many as `counts` says.

    With `kv_group` in it heads are in so many groups: the best of each of the groups whose heads have most together, then others.
    """
    heads = scores["head"].double()
    if "kv_group" in counts:
        grouped = heads.unflatten(1, (shapes[0].kv_heads, -1))
        inside = _places(grouped.sum(-1)) < torch.tensor(counts["kv_group"]).unsqueeze(1)
        first = _places(grouped) == 0
        # Places in their order as scores: first ones of kept groups, others of kept groups, the rest.
        order = 2.0 * inside.unsqueeze(-1) + (inside.unsqueeze(-1) & first)
        heads = order.flatten(1) * heads.shape[1] - _places(heads)
    chosen = {"head": heads, "mlp_neuron": scores["mlp_neuron"]}
    return complete_masks(
        {name: _places(values) < torch.tensor(counts[name]).unsqueeze(1) for name, values in chosen.items()}, shapes
    )


def _places(scores: Tensor) -> Tensor:
    """Number the values along the last dimension from the largest, 0, to the smallest."""
    return scores.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)


def structures(
    frozen: FrozenModel, scores: Mapping[str, Tensor], learned: Masks, share: float
) -> Iterator[tuple[str, Masks]]:
    """Yield the circuits of a ranking with at least as many parameters as the learned one, by how layers share them."""
    shapes, least = frozen.shapes, count_parameters(frozen, learned).kept
    layers, shape = len(shapes), shapes[0]

    def smallest(most: int, make: Callable[[int], Masks]) -> Masks:
        """Search the smallest circuit of those that grow with a number up to `most`."""
        low, high = 0, most
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if count_parameters(frozen, make(middle)).kept >= least else (middle + 1, high)
        return make(low)

    ranks = torch.unique(torch.cat([one.flatten() for one in scores.values()]), return_inverse=True)[1] + 1.0
    parts = ranks.split([one.numel() for one in scores.values()])
    gates = {name: part.view_as(scores[name]) for name, part in zip(scores, parts, strict=True)}
    neurons = layers * (shape.heads * shape.head_dim + shape.intermediate)
    yield "over all layers", smallest(neurons, lambda total: discretise(gates, shapes, {"total": total}))

    def alike(total: int) -> Masks:
        widths = [total // layers + (index < total % layers) for index in range(layers)]
        return best_in_layers(scores, {"head": [round(share * shape.heads)] * layers, "mlp_neuron": widths}, shapes)

    yield "in every layer", smallest(layers * shape.intermediate, alike)
    sizes = {name: learned[name].sum(1).tolist() for name in ("kv_group", "head", "mlp_neuron")}
    yield "as learned", best_in_layers(scores, sizes, shapes)

    def proportional(total: int) -> Masks:
        share = total / max(sum(sizes["mlp_neuron"]), 1)
        widths = [min(round(width * share), shape.intermediate) for width in sizes["mlp_neuron"]]
        return best_in_layers(scores, {"head": sizes["head"], "mlp_neuron": widths}, shapes)

    yield "heads as learned", smallest(layers * shape.intermediate, proportional)


def measure(model: str, output: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Train the circuits of a model, score them and the baselines. Returns perplexities by method and share."""
    config = load(PRESET, dict(settings))
    folder = prune(config, Ranks())
    run = resolve(config, Ranks())
    frozen = run.model.load(Ranks().device)
    data = complete_data(config, frozen, run.data, run.micro_batches)
    train, test = data.splits["train"], data.splits["test"]
    write_corpus(output / f"{Path(model).name}.jsonl", data.splits)
    learned = [Circuit.load(folder.circuit(str(index), len(REMOVED))) for index in range(len(REMOVED))]
    means = mean_ablation(frozen, train, run.micro_batches)
    candidates = []
    for name in METHODS:
        with Streams(frozen, ZERO) as streams:
            (scores,) = BASELINES[name].draw(streams, train, run.micro_batches, 1)
        for circuit, share in zip(learned, REMOVED, strict=True):
            for structure, masks in structures(frozen, unit_scores(scores, frozen.shapes), circuit.masks, 1 - share):
                candidates += [Candidate(name, share, structure, one, masks) for one in (ZERO, means)]

    def scored(chosen: Sequence[Candidate], examples: Sequence[Example]) -> list[Mapping[str, Any]]:
        found: dict[int, Mapping[str, Any]] = {}
        for ablation in (ZERO, means):
            places = [place for place, one in enumerate(chosen) if one.ablation is ablation]
            with Streams(frozen, ablation) as streams:
                scores = score(streams, examples, [chosen[p].masks for p in places], run.micro_batches, 6, full=True)
            for row, place in enumerate(places):
                found[place] = vars(summarise(scores, scores.circuit(-1), row)["perplexity"])
        return [found[place] for place in range(len(chosen))]

    summary = json.loads(folder.summary.read_text())
    result = {
        "model": model, "settings": dict(settings), "full": summary["full"]["perplexity"], "methods": [],
        "own_sizes": [], "documents": {name: len({example.document for example in split}) for name, split in data.splits.items()},
    }  # fmt: skip
    for index, share in enumerate(REMOVED):
        row = {"method": LEARNED_GATES, "removed": share, "ablation": "optimal", "structure": ""}
        result["methods"].append(
            {**row, **size(frozen, learned[index].masks), **summary["members"][index]["scores"]["perplexity"]}
        )
    on_validation = [one["mean"] for one in scored(candidates, data.splits["validation"])]
    chosen, own = dict[tuple[float, str], Candidate](), dict[tuple[float, str], Candidate]()
    for _, one in sorted(zip(on_validation, candidates, strict=True), key=lambda pair: pair[0]):
        chosen.setdefault((one.removed, one.method), one)
        if not one.structure.endswith("as learned"):
            own.setdefault((one.removed, one.method), one)
    for kind, best_ones in zip(BASELINE_SETS, (chosen, own), strict=True):
        for one, perplexity in zip(best_ones.values(), scored(list(best_ones.values()), test), strict=True):
            row = {"method": one.method, "removed": one.removed, "ablation": one.ablation.name}
            result[kind].append({**row, "structure": one.structure, **size(frozen, one.masks), **perplexity})
        for index, share in enumerate(REMOVED):
            # Dictionaries keep the order of validation.
            best = next(one for one in best_ones.values() if one.removed == share)
            circuit = Circuit(best.masks, {}, learned[index].metadata).under(best.ablation)
            circuit.save(output / f"{Path(model).name}-{kind}" / f"{index}.safetensors")
            result[f"best of {kind} at {share}"] = best.method
    return result


def size(frozen: FrozenModel, masks: Masks) -> dict[str, Any]:
    """Share of the parameters of the layers, and nodes, that a circuit keeps."""
    kept, total = count_parameters(frozen, masks)
    return {"parameters": kept / total, "kept": count(masks)}


def write_corpus(path: Path, splits: Mapping[str, Sequence[Example]]) -> None:
    """Write windows as rows of token ids with their split."""
    rows = [{"text": e.clean + e.answers[0], "split": name} for name, part in splits.items() for e in part]
    write_bytes(path, "".join(json.dumps(row) + "\n" for row in rows).encode())


def recovered(model: str, output: Path, steps: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Export and recover the learned circuits and the best baselines. Returns perplexities by method and share."""
    name, found = Path(model).name, {}
    circuits = {"learned": output / name / "circuits", **{one: output / f"{name}-{one}" for one in BASELINE_SETS}}
    for index, share in enumerate(REMOVED):
        for kind, folder in circuits.items():
            small = output / f"{name}-{kind}-{index}"
            found[f"{kind} {share}"] = after_recovery(model, folder / f"{index}.safetensors", small, steps, settings)
    return found


def after_recovery(model: str, circuit: Path, small: Path, steps: int, settings: Mapping[str, Any]) -> Any:
    """Export a circuit to `small` and recover it at the rate that validation documents choose. Returns its perplexity."""
    name, output = Path(model).name, small.parent
    source = output / f"{name}.model.json"
    write_json(source, {"model": {"path": model}})
    if not small.exists():
        written = ExportSettings(format="compact", output=str(small), verify=False, speed=False)
        export_circuit([str(circuit)], written, Ranks(), config=str(source))
    tried = []
    for rate in RATES:
        asked = RecoverSettings(
            train="rows",
            text=str(output / f"{name}.jsonl"),
            tokens=settings["task.text.window"],
            steps=steps,
            batch_size=settings["train.batch_size"],
            lr=rate,
            verify=False,
        )
        done = output / f"{small.name}-recovered-{rate:g}"
        recover([str(small)], asked, Ranks(), {"output": str(done)})
        tried.append(json.loads((done / RECOVER_FILE).read_text()))
    return min(tried, key=lambda one: one["validation"])["after"]["perplexity"]


def learned_along(model: str, output: Path, steps: int, rate: float, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Learn circuits beside weights that learn along, and recover their exports. Returns perplexities by share."""
    name, found = Path(model).name, {}
    own = {key: value for key, value in settings.items() if key not in ("population.members", "task.text.generate")}
    for index, share in enumerate(REMOVED):
        folder = output / f"{name}-along-{index}"
        asked = {
            "output": str(folder), "task.path": str(output / f"{name}.jsonl"), "train.steps": ALONG_STEPS,
            "train.validate_every": ALONG_STEPS // 4, "train.weight_lr": rate, "target.parameters": round(1 - share, 4),
        }  # fmt: skip
        circuit = prune(load(PRESET, {**own, **asked}), Ranks()).circuit("0", 1)
        found[f"along {share}"] = after_recovery(
            model, circuit, output / f"{name}-along-{index}-small", steps, settings
        )
    return found


def table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the tables of all models."""
    lines = [f"# Pruning on general text, {date.today()}", "", " ".join((__doc__ or "").split("\n\n")[2].split()), ""]
    lines += [
        "Perplexity on held-out documents with its 95% bootstrap interval over documents. `ratio`: increase over the full model of "
        "the learned circuit's perplexity, divided by that of the best baseline's (before recovery: the best on the held-out "
        "documents themselves, at each share).",
        "",
    ]
    for result in results:
        full, documents, settings = result["full"], result["documents"], result["settings"]
        lines += [
            f"## {Path(result['model']).name}",
            "",
            f"Full model {_interval(full)}; {documents['train']} documents to train on, {documents['validation']} for choices, "
            f"{documents['test']} held out; {settings['train.steps']} updates of {settings['train.batch_size']} windows of "
            f"{settings['task.text.window']} tokens.",
            "",
            "| method | " + " | ".join(f"{share:.0%} removed" for share in REMOVED) + " |",
            "|---|" + "---|" * len(REMOVED),
        ]
        for name in (LEARNED_GATES, *METHODS):
            rows = [_row(result, name, share) for share in REMOVED]
            cells = [" ".join(filter(None, [_interval(row), row["ablation"], row["structure"]])) for row in rows]
            lines.append(f"| {METHOD_LABELS[name]} | {' | '.join(cells)} |")
        for kind, (label, _) in BASELINE_SETS.items():
            best = [
                min(row["mean"] for row in result[kind] if row["method"] in METHODS and row["removed"] == s)
                for s in REMOVED
            ]
            learned = [_row(result, LEARNED_GATES, share)["mean"] for share in REMOVED]
            ratios = [_ratio(full["mean"], *pair) for pair in zip(learned, best, strict=True)]
            lines.append(f"| **{label}** | {' | '.join(f'**{value:.2f}**' for value in ratios)} |")
        if after := result.get("recovered"):
            kinds = {"learned": "learned gates"}
            if "along" in result:
                after = {**after, **result["along"]}
                kinds["along"] = f"learned gates, train.weight_lr {result['weight_lr']:g}"
            own = {kind: [after[f"{kind} {share}"] for share in REMOVED] for kind in kinds}
            what = f"{result['recover_steps']} steps of recovery"
            for kind, label in kinds.items():
                lines.append(f"| {label}, {what} | {' | '.join(_with_ends(*one) for one in own[kind])} |")
            for kind, (label, best_one) in BASELINE_SETS.items():
                theirs = [after[f"{kind} {share}"] for share in REMOVED]
                names = [METHOD_LABELS[result[f"best of {kind} at {share}"]] for share in REMOVED]
                cells = [f"{_with_ends(*one)} {name}" for one, name in zip(theirs, names, strict=True)]
                lines.append(f"| {best_one}, {what} | {' | '.join(cells)} |")
                for ours, which in kinds.items():
                    ratios = [
                        _ratio(full["mean"], one[0], other[0]) for one, other in zip(own[ours], theirs, strict=True)
                    ]
                    cells = [f"**{value:.2f}**" for value in ratios]
                    lines.append(
                        f"| **{which.replace('learned gates', label, 1)}, after recovery** | {' | '.join(cells)} |"
                    )
        lines.append("")
    return lines


def _row(result: Mapping[str, Any], name: str, share: float) -> Mapping[str, Any]:
    return next(row for row in result["methods"] if row["method"] == name and row["removed"] == share)


def _ratio(full: float, learned: float, baseline: float) -> float:
    return (learned - full) / max(baseline - full, math.ulp(full))


def _interval(row: Mapping[str, Any]) -> str:
    return _with_ends(row["mean"], row["low"], row["high"])


def _with_ends(value: float, low: float, high: float) -> str:
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def main() -> None:
    """Measure models and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="folders of causal language models")
    parser.add_argument("--output", type=Path, default=Path("runs/text"), help="folder of the runs")
    parser.add_argument("--documents", type=int, default=600, help="documents that a model writes")
    parser.add_argument("--window", type=int, default=64, help="tokens of a window")
    parser.add_argument("--batch_size", type=int, default=8, help="windows of an update")
    parser.add_argument("--steps", type=int, default=600, help="updates of the gates")
    parser.add_argument("--recover", type=int, default=300, help="updates of the recovery; 0 leaves it out")
    parser.add_argument("--weight_lr", type=float, default=0.0, help="train.weight_lr of circuits to recover; 0: none")
    arguments = parser.parse_args()
    results = []
    for model in arguments.models:
        file = arguments.output / f"{Path(model).name}.json"
        if not file.exists():
            write_json(file, measure(model, arguments.output, run_settings(model, arguments)))
        result = json.loads(file.read_text())
        if arguments.recover and "recovered" not in result:
            result["recovered"] = recovered(model, arguments.output, arguments.recover, result["settings"])
            result["recover_steps"] = arguments.recover
            write_json(file, result)
        if arguments.weight_lr and result.get("weight_lr") != arguments.weight_lr:
            found = learned_along(
                model, arguments.output, result["recover_steps"], arguments.weight_lr, result["settings"]
            )
            write_json(file, {**result, "along": found, "weight_lr": arguments.weight_lr})
        results.append(json.loads(file.read_text()))
        TABLE.write_text("\n".join(table(results)))
    print(TABLE.read_text())  # noqa: T201


if __name__ == "__main__":
    main()
