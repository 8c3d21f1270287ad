"""Measure faithfulness against size: presets, top-k gates and all baselines on the same nodes and pairs.

The models are pretrained or have planted circuits. Results are kept in pareto.jsonl, so an interrupted benchmark resumes with
what is missing, and several processes may measure at once with different --only; pareto.md and pareto.svg are rewritten after every
part, and by
`python -m benchmarks.pareto_table` without measuring.

    python -m benchmarks.pareto --models FOLDER --pairs FOLDER [--only WORD ...] [--planted 3]
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch

from benchmarks.ground_truth import INDUCTION, make_case
from benchmarks.pareto_table import BOUND, read, write
from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.attribution.baselines import BASELINES
from bigcircuit.attribution.node_scores import NodeScores, strengths
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load
from bigcircuit.config.schema import Config
from bigcircuit.data.dataset import load_task
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.evaluation.ranking import circuits_of
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import Masks, count
from bigcircuit.io.run_dir import RunDir
from bigcircuit.metrics.score import score
from bigcircuit.model.load import load_config, load_frozen, load_tokenizer
from bigcircuit.model.parameter_count import count_parameters
from bigcircuit.prune import prune

ROWS = Path(__file__).with_name("pareto.jsonl")
PRESETS = Path(__file__).parents[1] / "configs/presets"
SHARES = (0.06, 0.12, 0.25, 0.4)
"""Target sizes, as shares of all site neurons."""
HEAD_SHARES = (0.1, 0.2, 0.3, 0.45, 0.6)
"""Target numbers of heads, as shares of all heads."""
STEADY, SEEDS = 0.25, 8
"""Target share at which stability is measured, and its number of seeds; other shares have two seeds."""
PRESSURES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""Multiples of the published penalties, for circuits of several sizes."""
CURVE = (0.03, 0.06, 0.09, 0.12, 0.18, 0.25, 0.32, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of all neurons that are kept of a ranking."""


class Setting(NamedTuple):
    """Pair file, its model, and what all runs on the file share."""

    name: str
    base: dict[str, Any]
    arguments: argparse.Namespace

    def config(self, preset: str, output: Path, **overrides: Any) -> Config:
        """Build the config of a run of a preset. overrides: dotted keys with `__` for the dot."""
        values = {key.replace("__", "."): value for key, value in overrides.items()}
        steady = {"train.save_every": 10**6, "output": str(output)}
        return load(str(PRESETS / f"{preset}.yaml"), {**self.base, **steady, **values})


class Measured(NamedTuple):
    """Circuits of a method, measured on the held-out pairs."""

    masks: Masks
    seed: int
    heads: int | None = None
    """Target number of heads, if there was one."""


def trained(setting: Setting, folder: Path, neurons: int) -> list[Measured]:
    """Train with the default preset at four sizes."""
    members = [
        {"target.total": round(share * neurons), "train.seed": seed}
        for share in SHARES
        for seed in range(SEEDS if share == STEADY else 2)
    ]
    overrides = {"population__members": members, "train__steps": setting.arguments.steps}
    run = prune(setting.config("default", folder, **overrides), Ranks())
    return _measured(run)


def few_heads(setting: Setting, folder: Path, neurons: int) -> list[Measured]:
    """Train with the default preset for few heads and the neurons of the largest circuits."""
    heads = sum(shape.heads for shape in load_frozen(load(None, setting.base).model, torch.device("cpu"), None).shapes)
    members = [
        {"target.total": round(SHARES[-1] * neurons), "target.head": round(share * heads)} for share in HEAD_SHARES
    ]
    run = prune(
        setting.config("default", folder, population__members=members, train__steps=setting.arguments.steps), Ranks()
    )
    return [one._replace(heads=member["target.head"]) for one, member in zip(_measured(run), members, strict=True)]


def published(setting: Setting, folder: Path, _: int) -> list[Measured]:
    """Train with the published settings, with several strengths of the penalties."""
    plain = load(str(PRESETS / "paper.yaml"), {}).penalty
    members = [{f"penalty.{g}": w * pressure for g, w in plain if w} for pressure in PRESSURES]
    overrides = {"train__steps": setting.arguments.published_steps, "train__batch_size": 16}
    run = prune(setting.config("paper", folder, population__members=members, **overrides), Ranks())
    return _measured(run)


def bound(setting: Setting, folder: Path, neurons: int) -> list[Measured]:
    """Train with the default preset on the held-out pairs themselves: a bound on what masks can reach."""
    config = load(None, setting.base)
    data = load_task(config.task, load_tokenizer(config.model), load_config(config.model))
    swapped = {"train": "test", "validation": "validation", "test": "train"}
    splits = {example.id: swapped[name] for name, examples in data.splits.items() for example in examples}
    rows = [pair._replace(split=splits[index])._asdict() for index, pair in enumerate(data.pairs) if index in splits]
    path = folder.with_suffix(".jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    overrides = {
        "task__path": str(path), "train__both_ways": False, "train__steps": setting.arguments.steps,
        "train__validate_every": setting.arguments.steps,  # the result is the last state, not the best on validation pairs
        "population__members": [{"target.total": round(share * neurons)} for share in SHARES],
    }  # fmt: skip
    run = prune(setting.config("default", folder, **overrides), Ranks())
    return _measured(run)


def any_size(parametrisation: str) -> Callable[[Setting, Path, int], list[Measured]]:
    """Train gates that order the neurons at every size, one run for each of two seeds."""

    def run(setting: Setting, folder: Path, neurons: int) -> list[Measured]:
        overrides = {
            "gates__parametrisation": parametrisation, "gates__sampled_sizes": True, "population__seeds": 2,
            "target__total": round(STEADY * neurons), "train__steps": setting.arguments.steps,
        }  # fmt: skip
        found = []
        for circuit in _circuits(prune(setting.config("default", folder, **overrides), Ranks())):
            shapes = load_frozen(load(None, setting.base).model, torch.device("cpu"), None).shapes
            found += _cut(strengths(circuit.log_alpha, shapes), shapes, neurons, int(circuit.metadata["seed"]))
        return found

    return run


def baseline(name: str) -> Callable[[Setting, Path, int], list[Measured]]:
    """Rank neurons by a baseline."""

    def run(setting: Setting, _: Path, neurons: int) -> list[Measured]:
        config = load(None, setting.base)
        frozen = load_frozen(config.model, torch.device("cpu"), None)
        data = load_task(config.task, load_tokenizer(config.model), load_config(config.model))
        with Streams(frozen, INTERCHANGE) as streams:
            scores = BASELINES[name].score(streams, data.splits["train"], MicroBatches(16))
        return _cut(scores, frozen.shapes, neurons, 0)

    return run


METHODS: dict[str, Callable[[Setting, Path, int], list[Measured]]] = {
    **{name.replace("_", " "): baseline(name) for name, one in BASELINES.items() if not one.only},
    "default": trained,
    "default, few heads": few_heads,
    "paper": published,
    "sigmoid top-k, any size": any_size("sigmoid_top_k"),
    "straight-through top-k, any size": any_size("straight_through_top_k"),
    BOUND: bound,
}


def _circuits(run: RunDir) -> list[Circuit]:
    summary = json.loads(run.summary.read_text())
    return [Circuit.load(run.path / member["circuit"]) for member in summary["members"]]


def _measured(run: RunDir) -> list[Measured]:
    return [Measured(circuit.masks, int(circuit.metadata["seed"])) for circuit in _circuits(run)]


def _cut(scores: NodeScores, shapes: Sequence[Any], neurons: int, seed: int) -> list[Measured]:
    sizes = [round(share * neurons) for share in CURVE]
    return [Measured(masks, seed) for masks in circuits_of(scores, "neuron", sizes, shapes)]


def measure(setting: Setting, method: str) -> Iterator[dict[str, Any]]:
    """Train or rank, and measure every circuit on the held-out pairs."""
    config = load(None, setting.base)
    frozen = load_frozen(config.model, torch.device("cpu"), None)
    data = load_task(config.task, load_tokenizer(config.model), load_config(config.model))
    neurons = sum(shape.heads * shape.head_dim + shape.intermediate for shape in frozen.shapes)
    with tempfile.TemporaryDirectory() as folder:
        found = METHODS[method](setting, Path(folder) / "run", neurons)
    with Streams(frozen, INTERCHANGE) as streams:
        scores = score(streams, data.splits["test"], [one.masks for one in found], MicroBatches(16))
    for index, one in enumerate(found):
        sizes, parameters = count(one.masks), count_parameters(frozen, one.masks)
        yield {
            "file": setting.name, "method": method, "seed": one.seed, "neurons": sizes["total"], "of": neurons,
            "heads": sizes["head"], "asked_heads": one.heads, "parameters": parameters.kept / parameters.total,
            "kl": float(scores["kl"][index].mean()), "exact_match": float(scores["exact_match"][index].mean()),
            "jaccard": [_jaccard(found, index, level) for level in ("head", "neuron")] if method == "default" else None,
        }  # fmt: skip


def _jaccard(found: Sequence[Measured], index: int, level: str) -> float | None:
    """Compute the mean Jaccard index with the circuits of the other seeds of the same size."""
    names = ("head",) if level == "head" else ("attention_neuron", "mlp_neuron")
    mine = torch.cat([found[index].masks[name].flatten() for name in names])
    size = count(found[index].masks)["total"]
    others = [one.masks for one in found if one is not found[index] and count(one.masks)["total"] == size]
    flat = [torch.cat([masks[name].flatten() for name in names]) for masks in others]
    return mean(float((mine & other).sum() / (mine | other).sum()) for other in flat) if flat else None


def cases(arguments: argparse.Namespace) -> Iterator[tuple[str, Callable[[Path], dict[str, Any]]]]:
    """Return for the name of each set of pairs a function from a folder for files to the settings."""
    for path in sorted(arguments.pairs.glob("*/*.jsonl"), reverse=True):
        model = arguments.models / path.parent.name
        yield f"{path.parent.name}/{path.stem}", lambda _, model=model, path=path: _settings(model, path)
    for seed in range(arguments.planted):
        yield f"planted/gpt2 {seed}", partial(_planted, seed)


def _settings(model: Path, pairs: Path) -> dict[str, Any]:
    return {"model.path": str(model), "task.name": "pairs", "task.path": str(pairs)}


def _planted(seed: int, folder: Path) -> dict[str, Any]:
    case = make_case("gpt2", seed, folder, INDUCTION)
    return _settings(case.planted.folder, folder / "pairs.jsonl")


def main() -> None:
    """Measure what is missing and write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, help="folder of model folders")
    parser.add_argument("--pairs", type=Path, required=True, help="folder of pair files, by model")
    parser.add_argument("--only", nargs="*", default=[""], help="what names of pair files or methods contain")
    parser.add_argument("--planted", type=int, default=3, help="models with planted circuits")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--published-steps", type=int, default=1500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for name, make in cases(arguments):
        with tempfile.TemporaryDirectory() as folder:
            base: dict[str, Any] = {}
            for method in METHODS:
                known = any((row["file"], row["method"]) == (name, method) for row in read(ROWS))
                if known or not any(word in f"{name} {method}" for word in arguments.only):
                    continue
                base = base or make(Path(folder))
                rows = list(measure(Setting(name, base, arguments), method))
                with ROWS.open("a") as file:
                    file.writelines(json.dumps(row) + "\n" for row in rows)
                write(read(ROWS), arguments.steps, arguments.published_steps)


if __name__ == "__main__":
    main()
