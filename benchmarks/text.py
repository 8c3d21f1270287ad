"""Prune models on general text and compare held-out perplexities with rankings of the literature, at equal parameters.

python -m benchmarks.text MODEL [MODEL ...] [--output FOLDER]

Each model writes its own corpus (task.text.generate), half of whose documents are held out. One population of circuits, one a
share, is trained under mean ablation; its gates and every baseline rank the site neurons, and all rankings are cut where the
circuit keeps the same share of the parameters of the layers. Baselines are scored under zero and mean ablation, and the better of
the two counts. The command resumes; what is finished is not measured again.
"""

import argparse
import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from bigcircuit.ablation.ablation import ZERO
from bigcircuit.attribution.baselines import BASELINES, LEARNED_GATES, METHOD_LABELS
from bigcircuit.attribution.node_scores import NodeScores, strengths
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.evaluation.ranking import circuits_of
from bigcircuit.forward.activation_means import mean_ablation
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import Masks
from bigcircuit.io.files import write_json
from bigcircuit.metrics.score import score, summarise
from bigcircuit.model.parameter_count import count_parameters
from bigcircuit.model.sites import FrozenModel
from bigcircuit.prune import prune
from bigcircuit.train.pair_filters import complete_data
from bigcircuit.train.resolve import resolve

TABLE = Path(__file__).with_suffix(".md")
REMOVED = (0.2, 0.35, 0.5)
"""Shares of the parameters of the layers that are removed."""
METHODS = ("weight_magnitude", "activation_magnitude", "taylor", "fluctuation", "block_influence", "random")
"""Baselines; every one in its own entry of BASELINES."""
DRAWS, RANKED_ON = 3, 64
"""Random rankings, of which the best counts; windows that baselines are measured on, as many as their papers use at least."""
SETTINGS: dict[str, Any] = {
    "task.name": "text",
    "task.text.generate": 1600,
    "task.text.window": 128,
    "ablation.kind": "mean",
    "train.steps": 600,
    "train.validate_every": 200,
    "train.save_every": 20,
}


def settings(model: str, output: Path) -> dict[str, Any]:
    """Settings of the run of a model: one member a share, all in one pass."""
    sizes = [{"target.total": round(1 - share, 4)} for share in REMOVED]
    return {**SETTINGS, "model.path": model, "population.members": sizes, "output": str(output / Path(model).name)}


def cut(frozen: FrozenModel, scores: NodeScores, share: float) -> Masks:
    """Keep the best neurons of a ranking, as many as hold at most this share of the parameters of the layers."""
    shapes = frozen.shapes
    low, high = 0, sum(shape.heads * shape.head_dim + shape.intermediate for shape in shapes)
    while low < high:
        middle = (low + high + 1) // 2
        (masks,) = circuits_of(scores, "neuron", [middle], shapes)
        kept, total = count_parameters(frozen, masks)
        low, high = (middle, high) if kept <= share * total else (low, middle - 1)
    return circuits_of(scores, "neuron", [low], shapes)[0]


def measure(model: str, output: Path) -> dict[str, Any]:
    """Train the circuits of a model, score them and the baselines. Returns perplexities by method, ablation and share."""
    config = load(None, settings(model, output))
    folder = prune(config, Ranks())
    run = resolve(config, Ranks())
    frozen = run.model.load(Ranks().device)
    data = complete_data(config, frozen, run.data, run.micro_batches)
    train, test = data.splits["train"], data.splits["test"]
    means = mean_ablation(frozen, train, run.micro_batches)
    rankings: dict[str, list[NodeScores]] = {}
    for name in METHODS:
        with Streams(frozen, ZERO) as streams:
            rankings[name] = BASELINES[name].draw(streams, train[:RANKED_ON], run.micro_batches, DRAWS)
    names, circuits = [], []
    for index, share in enumerate(REMOVED):
        gates = Circuit.load(folder.circuit(str(index), len(REMOVED))).log_alpha
        for name, scores in {LEARNED_GATES: [strengths(gates, frozen.shapes)], **rankings}.items():
            for one in scores:
                names.append((name, share))
                circuits.append(cut(frozen, one, 1 - share))
    found: dict[str, Any] = {"model": model, "documents": len({e.document for e in test}), "methods": []}
    for ablation in (ZERO, means):
        with Streams(frozen, ablation) as streams:
            scores = score(streams, test, circuits, run.micro_batches, at_once=4, full=True)
        whole = scores.circuit(-1)
        found["full"] = vars(summarise(whole, whole, 0)["perplexity"])
        for index, ((name, share), masks) in enumerate(zip(names, circuits, strict=True)):
            kept, total = count_parameters(frozen, masks)
            row = {"method": name, "removed": share, "ablation": ablation.name, "parameters": kept / total}
            found["methods"].append({**row, **vars(summarise(scores, whole, index)["perplexity"])})
    return found


def table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the table of all models: perplexity and its increase by method, and the learned increase over the best baseline's."""
    lines = [
        f"# Pruning on general text, {date.today()}",
        "",
        " ".join(re.sub(r"\s+", " ", __doc__.partition("\n\n")[2].partition("\n\n")[2]).split()),
        "",
        "Perplexity on held-out samples with its 95% bootstrap interval over documents. `ratio`: increase of the learned circuit's "
        "perplexity over that of the best baseline's.",
        "",
    ]
    for result in results:
        full = result["full"]
        lines += [
            f"## {Path(result['model']).name}: full model {_interval(full)}, {result['documents']} held-out documents",
            "",
            "| method | " + " | ".join(f"{share:.0%} removed" for share in REMOVED) + " |",
            "|---|" + "---|" * len(REMOVED),
        ]
        best = {(name, share): _best(result, name, share) for name in (LEARNED_GATES, *METHODS) for share in REMOVED}
        for name in (LEARNED_GATES, *METHODS):
            cells = [f"{_interval(best[name, share])} {best[name, share]['ablation']}" for share in REMOVED]
            lines.append(f"| {METHOD_LABELS[name]} | {' | '.join(cells)} |")
        ratios = [ratio(result, share) for share in REMOVED]
        lines += [f"| **ratio** | {' | '.join(f'**{value:.2f}**' for value in ratios)} |", ""]
    return lines


def ratio(result: Mapping[str, Any], share: float) -> float:
    """Divide the increase of the learned circuit's perplexity by that of the best baseline."""
    full = result["full"]["mean"]
    others = min(_best(result, name, share)["mean"] for name in METHODS)
    return (_best(result, LEARNED_GATES, share)["mean"] - full) / max(others - full, math.ulp(full))


def _best(result: Mapping[str, Any], name: str, share: float) -> dict[str, Any]:
    rows = [row for row in result["methods"] if row["method"] == name and row["removed"] == share]
    return min(rows, key=lambda row: row["mean"])


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def main() -> None:
    """Measure models and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+", help="folders of causal language models")
    parser.add_argument("--output", type=Path, default=Path("runs/text"), help="folder of the runs")
    arguments = parser.parse_args()
    results = []
    for model in arguments.models:
        file = arguments.output / f"{Path(model).name}.json"
        if not file.exists():
            write_json(file, measure(model, arguments.output))
        results.append(json.loads(file.read_text()))
        TABLE.write_text("\n".join(table(results)))
    print(TABLE.read_text())  # noqa: T201


if __name__ == "__main__":
    main()
