"""Compare the gates that quantised weights give with those of the plain weights that they stand for.

    python -m benchmarks.quantised [--formats "fp8" "bitsandbytes nf4" ...]

For every format that is loaded a tiny random checkpoint is written, and its weights are dequantised by hand (MXFP4: a mixture, the
others a Llama). Compared are the gradients of random masks, and the gates after a short run on the same pairs. Writes quantised.md.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import cosine_similarity

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load
from bigcircuit.config.schema import ModelConfig
from bigcircuit.data.collate import collate
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.forward.streams import Streams
from bigcircuit.model.quantization import WEIGHT_FORMATS
from bigcircuit.model.resolve import resolve_model
from bigcircuit.prune import prune
from tests.helpers.quantised_models import save_packed_experts, save_plain, save_quantised
from tests.helpers.tiny_models import random_masks, tiny_examples

OUTPUT = Path(__file__).with_suffix(".md")
DTYPES = ("float32", "bfloat16")
STEPS, PAIRS, VOCABULARY = 40, 48, 128


class Agreement(NamedTuple):
    """How near quantised weights come to the plain ones that they stand for."""

    gradients: float
    """Cosine of the gradients of all masks."""
    gates: float
    """Cosine of all gates after the run."""
    other_nodes: float
    """Share of the nodes that one circuit keeps and the other does not."""


def save_pairs(path: Path) -> None:
    """Write pairs of random tokens that differ in two places."""
    rng, rows = random.Random(0), []
    for index in range(PAIRS):
        clean = [rng.randrange(3, 96) for _ in range(10)]
        corrupted = [*clean[:2], *(rng.randrange(3, 96) for _ in range(2)), *clean[4:]]
        split = "test" if index % 4 == 0 else "validation" if index % 4 == 1 else "train"
        right, wrong = rng.sample(range(3, 96), 2)
        answers = {"answers": [[right]], "wrong_answers": [[wrong]]}
        rows.append({"clean": clean, "corrupted": corrupted, **answers, "split": split})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def save_both(name: str, folder: Path) -> tuple[Path, Path]:
    """Save a tiny checkpoint of a format, and the plain weights that it stands for; returns both folders."""
    if name != "mxfp4":
        return save_quantised(name, save_plain(folder / "plain"), folder)
    quantised, meant = folder / "quantised", folder / "meant"
    weights = save_packed_experts(quantised)
    shutil.copytree(quantised, meant)
    save_file(weights, meant / "model.safetensors", {"format": "pt"})
    config = json.loads((meant / "config.json").read_text())
    del config["quantization_config"]
    (meant / "config.json").write_text(json.dumps(config))
    return quantised, meant


def gradients(folder: Path, dtype: str) -> Tensor:
    """Gradients of random masks after a plain pass without a graph, float64 [all masks]."""
    frozen = resolve_model(ModelConfig(path=str(folder), device="cpu", dtype=dtype)).load(torch.device("cpu"))
    batch = collate(tiny_examples(), full=False)
    masks = random_masks(frozen, 1, len(batch.clean), requires_grad=True)
    with Streams(frozen, INTERCHANGE) as streams:
        streams.reference(batch)
        streams.masked(batch, masks.__getitem__, 1).float().pow(2).sum().backward()
    return torch.cat(
        [mask.grad.flatten().double() for layer in masks for mask in layer.values() if mask.grad is not None]
    )


def circuit(folder: Path, dtype: str, pairs: Path, output: Path) -> Circuit:
    """Train gates for a few steps."""
    settings: dict[str, Any] = {
        "model.path": str(folder),
        "model.dtype": dtype,
        "task.name": "pairs",
        "task.path": str(pairs),
    }
    settings |= {"train.steps": STEPS, "train.batch_size": 8, "target.total": 0.3, "output": str(output)}
    if "num_local_experts" in json.loads((folder / "config.json").read_text()):
        settings["target.expert"] = 0.5
    return Circuit.load(prune(load(None, settings), Ranks()).circuit("0", 1))


def compare(name: str, dtype: str, folder: Path) -> Agreement:
    """Measure one format in one dtype."""
    both = save_both(name, folder)
    save_pairs(folder / "pairs.jsonl")
    found = [gradients(path, dtype) for path in both]
    circuits = [circuit(path, dtype, folder / "pairs.jsonl", folder / f"run{index}") for index, path in enumerate(both)]
    gates, masks = (
        [torch.cat([part[key].flatten().double() for key in sorted(part)]) for part in parts]
        for parts in ([one.log_alpha for one in circuits], [one.masks for one in circuits])
    )
    return Agreement(
        gradients=float(cosine_similarity(*found, dim=0)),
        gates=float(cosine_similarity(*gates, dim=0)),
        other_nodes=float((masks[0] != masks[1]).double().mean()),
    )


def page(results: dict[tuple[str, str], Agreement]) -> Iterator[str]:
    """Write the lines of the page."""
    yield f"# Gates of quantised weights, {date.today()}"
    yield ""
    yield (
        "Against the plain weights that a checkpoint stands for, dequantised by hand: cosine of the gradients of random masks, "
        f"and of all gates after {STEPS} updates on the same pairs with the same seed, and the share of nodes that only one of "
        "the two circuits keeps. Tiny random models (a Llama of 2 layers and width 128; for MXFP4 a gpt-oss), CPU."
    )
    yield ""
    yield "| format | model.dtype | gradients | gates | other nodes |"
    yield "|---|---|---|---|---|"
    for (name, dtype), found in results.items():
        yield f"| {name} | {dtype} | {found.gradients:.6f} | {found.gates:.6f} | {found.other_nodes:.2%} |"
    yield ""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--formats", nargs="+", default=list(WEIGHT_FORMATS), choices=list(WEIGHT_FORMATS))
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in arguments.formats:
        for dtype in DTYPES:
            with tempfile.TemporaryDirectory() as folder:
                results[name, dtype] = compare(name, dtype, Path(folder))
            sys.stdout.write(f"{name}, {dtype}: {results[name, dtype]}\n")
            sys.stdout.flush()
            arguments.output.write_text("\n".join(page(results)), encoding="utf-8")


if __name__ == "__main__":
    main()
