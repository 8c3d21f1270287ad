"""Measure how well learned masks and every baseline recover a planted circuit; writes ground_truth.md beside this file.

Tables of families that are not measured again are kept.

python -m benchmarks.ground_truth [--seeds 10] [--families gpt2,llama,induction,mixture] [--induction FOLDER]

`gpt2` and `llama` are small models trained here and widened (see bigcircuit/planted); `induction` is the textbook induction model
of two layers, whose second head of each layer is padding; it is widened as well, and its truth is known for heads only. The
`mixture` is a mixture of experts whose experts are planted. The
learned masks are those of the default preset with the true size as target, and once more with penalties in place of a target.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.attribution.baselines import BASELINES
from bigcircuit.attribution.node_scores import LEVELS, NodeScores, flat, level_size, strengths
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.evaluation.ranking import circuits_of
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import Masks
from bigcircuit.metrics.mib import Ranking
from bigcircuit.metrics.score import score
from bigcircuit.model.sites import FrozenModel, find_sites
from bigcircuit.planted import make_mixture, plant, plant_mixture, recovery
from bigcircuit.planted.base import FAMILIES, examples_of, knockouts, make_base
from bigcircuit.planted.decoys import NEEDED
from bigcircuit.planted.induction import induction_pairs
from bigcircuit.planted.plant import Planted
from bigcircuit.planted.recovery import kept_by_kind
from bigcircuit.prune import prune

OUTPUT = Path(__file__).with_suffix(".md")
INDUCTION = Path(__file__).parents[2] / "shared/models/induction_2L1H"
RANKINGS: dict[str, tuple[Ranking, ...]] = {
    "integrated_gradients": ("signed", "absolute"),
    "attribution_patching": ("signed", "absolute"),
}
"""Methods with negative scores, for which the orders by score and by absolute score differ."""
WITH_SIZE, WITHOUT_SIZE = "learned", "learned, size not told"
PENALTY = 0.5
"""Nats for all neurons of a site, in runs without a target size."""


class Case(NamedTuple):
    """Planted model with its pairs."""

    planted: Planted
    frozen: FrozenModel
    pairs: list[dict[str, Any]]
    levels: tuple[str, ...]


class Found(NamedTuple):
    """Result of a method on a case at one level: neurons, heads or experts."""

    method: str
    level: str
    precision: float
    recall: float
    auroc: float
    kl: float
    """Held-out KL of the kept nodes, nats."""
    kinds: dict[str, float]
    """Kind of node -> share kept."""


def main() -> None:
    """Measure and write the page after every case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--families", default="gpt2,llama,induction,mixture")
    parser.add_argument("--induction", type=Path, default=INDUCTION, help="folder of the induction model")
    parser.add_argument(
        "--steps", type=int, default=None, help="updates of the learned masks; those of the preset by default"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    others = [part for part in sections(OUTPUT) if part.split(",")[0][4:] not in arguments.families.split(",")]
    results: dict[str, list[list[Found]]] = {}
    notes: dict[str, list[str]] = {}
    for family in arguments.families.split(","):
        for seed in range(arguments.seeds):
            started = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                case = make_case(family, seed, Path(folder), arguments.induction)
                results.setdefault(family, []).append(list(compare(case, seed, Path(folder), arguments.steps)))
                notes.setdefault(family, []).append(describe(case))
            OUTPUT.write_text(page(results, notes) + "".join(others))
            print(family, seed, f"{time.monotonic() - started:.0f} s", notes[family][-1], flush=True)  # noqa: T201


def sections(path: Path) -> list[str]:
    """Read the sections of an existing page, each with its heading."""
    parts = path.read_text().split("\n## ")[1:] if path.is_file() else []
    return ["\n## " + part.strip("\n") + "\n" for part in parts]


def make_case(family: str, seed: int, folder: Path, induction: Path) -> Case:
    """Make a planted model of a family with its pairs."""
    from transformers import AutoModelForCausalLM

    if family in FAMILIES:
        base = make_base(family, seed)
        planted, pairs = plant(base.model, folder / "model", seed, needed=base.needed), base.pairs
        levels: tuple[str, ...] = ("neuron", "head")
    elif family == "mixture":
        mixture = make_mixture(seed)
        planted, pairs, levels = plant_mixture(mixture, folder / "model", seed), mixture.pairs, ("expert",)
    else:
        needed = {
            name: torch.zeros(2, n, dtype=torch.bool) for name, n in (("attention_neuron", 128), ("mlp_neuron", 4))
        }
        needed["attention_neuron"][:, :64] = True
        model = AutoModelForCausalLM.from_pretrained(induction)
        planted, pairs = plant(model, folder / "model", seed, needed=needed), divided_pairs(seed)
        levels = ("head",)
    wide = AutoModelForCausalLM.from_pretrained(folder / "model")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return Case(planted, find_sites(wide.eval().requires_grad_(False)), pairs, levels)


def divided_pairs(seed: int) -> list[dict[str, Any]]:
    """Make the pairs of the induction model, with fixed splits."""
    splits = [name for name, count in (("train", 160), ("validation", 40), ("test", 160)) for _ in range(count)]
    return [{**row, "split": name} for row, name in zip(induction_pairs(len(splits), seed), splits, strict=True)]


def split(case: Case, name: str) -> list[Example]:
    """Return the examples of a split."""
    return examples_of([row for row in case.pairs if row["split"] == name])


def compare(case: Case, seed: int, folder: Path, steps: int | None) -> Iterator[Found]:
    """Run all methods on a case, each on the same training pairs."""
    truth, shapes, test = case.planted.truth, case.frozen.shapes, split(case, "test")
    kept: list[tuple[str, str, Ranking, NodeScores, Masks]] = []
    with Streams(case.frozen, INTERCHANGE) as streams:
        for method, baseline in BASELINES.items():
            if baseline.refusal(shapes):
                continue
            seeded = {"seed": seed} if baseline.is_random else {}
            scores = baseline.score(streams, split(case, "train"), MicroBatches(16), **seeded)
            for ranking in RANKINGS.get(method, ("signed",)):
                for level in case.levels:
                    size = int(flat(truth, level, shapes).sum())
                    (masks,) = circuits_of(scores, level, [size], shapes, ranking)
                    label = f"{method}, {ranking}" if method in RANKINGS else method
                    kept.append((label, level, ranking, scores, masks))
        for method, level, circuit in learn(case, folder, steps):
            kept.append((method, level, "signed", strengths(circuit.log_alpha, shapes), dict(circuit.masks)))
        kl = score(streams, test, [masks for *_, masks in kept], MicroBatches(80), at_once=8)["kl"].mean(1).tolist()
    for (method, level, ranking, scores, masks), nats in zip(kept, kl, strict=True):
        names = LEVELS[level]
        precision, recall, auroc = recovery(scores, truth, level, shapes, ranking, masks)
        yield Found(
            method=method,
            level=level,
            precision=precision,
            recall=recall,
            auroc=auroc,
            kl=nats,
            kinds=kept_by_kind(masks, case.planted.kinds, names),
        )


def learn(case: Case, folder: Path, steps: int | None) -> list[tuple[str, str, Circuit]]:
    """Train masks with the true size as target at each level, and with penalties without a target: separate runs."""
    truth, shapes = case.planted.truth, case.frozen.shapes
    shared = {
        "model.path": str(case.planted.folder),
        "task.name": "pairs",
        "task.path": str(folder / "pairs.jsonl"),
        "train.micro_batch_size": 16,  # the whole batch in one pass
    } | ({"train.steps": steps} if steps else {})

    def circuit(name: str, settings: dict[str, Any]) -> Circuit:
        run = prune(load(None, {**shared, **settings, "output": str(folder / name)}), Ranks())
        return Circuit.load(run.circuit("0", 1))

    found = []
    for level in case.levels:
        target = "target.total" if level == "neuron" else f"target.{level}"
        found.append((WITH_SIZE, level, circuit(level, {target: int(flat(truth, level, shapes).sum())})))
    if "neuron" in case.levels:
        untold = circuit("untold", {"penalty.attention_neuron": PENALTY, "penalty.mlp_neuron": PENALTY})
        found += [(WITHOUT_SIZE, level, untold) for level in case.levels]
    return found


def describe(case: Case) -> str:
    """Describe the true circuit and the KL of leaving one of its nodes out."""
    truth, shapes = case.planted.truth, case.frozen.shapes
    sizes = ", ".join(
        f"{int(flat(truth, level, shapes).sum())} of {level_size(level, shapes)} {level}s" for level in case.levels
    )
    if "neuron" not in case.levels:
        return sizes
    costs: dict[str, list[float]] = {}
    for (name, layer, node), cost in knockouts(case.frozen, split(case, "test")).items():
        costs.setdefault(case.planted.kinds[name][layer][node], []).append(cost)
    least = {kind: min(costs[kind]) for kind in NEEDED}
    return f"{sizes}; least cost of an original {least['original']:.3f} nats, of a shared one {least['shared']:.3f}"


def page(results: dict[str, list[list[Found]]], notes: dict[str, list[str]]) -> str:
    """Compose the page."""
    lines = [
        "# Recovery of planted circuits",
        "",
        "Means over seeds, each another model or another planting, with the standard deviation and the worst seed. Everything on",
        "the same nodes, training pairs and ablation (interchange). Circuits have exactly the size of the truth, so that precision",
        f"is recall, but for `{WITHOUT_SIZE}` (penalty {PENALTY} for either kind of neuron). KL is held out, in nats; the truth",
        "itself has 0. What decoys are, and why they are not needed: `bigcircuit/planted/__init__.py`. Rankings are signed unless",
        "said otherwise.",
    ]
    for family, seeds in results.items():
        for level in dict.fromkeys(one.level for one in seeds[0]):
            lines += ["", f"## {family}, {level}s ({len(seeds)} seeds, {date.today()})", ""]
            lines += _tables([[one for one in seed if one.level == level] for seed in seeds])
        lines += ["", "Seeds: " + "; ".join(f"({seed}) {note}" for seed, note in enumerate(notes[family])) + "."]
    return "\n".join(lines) + "\n"


def _tables(seeds: list[list[Found]]) -> list[str]:
    """Compose a table with a row per method, best first: recovery, and the kinds of nodes that the method keeps."""
    kinds = sorted({kind for seed in seeds for one in seed for kind in one.kinds}, key=lambda k: (k not in NEEDED, k))
    methods = list(dict.fromkeys(one.method for one in seeds[0]))
    by_method = {method: [one for seed in seeds for one in seed if one.method == method] for method in methods}
    order = sorted(methods, key=lambda m: -np.mean([one.auroc for one in by_method[m]]))
    head = ["method", "precision", "recall", "AUROC", "KL", *(f"{kind} kept" for kind in kinds)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for method in order:
        found = by_method[method]
        cells = [_spread([getattr(one, name) for one in found]) for name in ("precision", "recall", "auroc")]
        cells.append(f"{round(float(np.mean([one.kl for one in found])), 3) + 0.0:.3f}")  # no -0.000
        cells += [f"{np.mean([one.kinds[kind] for one in found if kind in one.kinds]):.0%}" for kind in kinds]
        lines.append(f"| {' | '.join([method, *cells])} |")
    return lines


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values):.3f} ({min(values):.3f})"


if __name__ == "__main__":
    main()
