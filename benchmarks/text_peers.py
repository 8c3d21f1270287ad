"""Prune models with other tools as their users do, and compare held-out perplexities with the circuits of `benchmarks.text`.

    python -m benchmarks.text_peers MODEL [MODEL ...] [--runs FOLDER] [--tool NAME=PYTHON ...]

FOLDER is that of `benchmarks.text`, which writes the windows that the tools calibrate on and the held-out ones. Each tool is run by
a Python of its own (`benchmarks/text_peers_prune.py`): optipfair 0.4.2 by all its neuron selections, by depth and by its pipeline
of both; torch-pruning 1.6.1, with the transformers 4.46 that its example for language models was written for, by the example's
settings, also global and with the hidden size left alone, by four importances; without its rounding of widths to multiples of
four, which would leave no sizes near the asked ones here. Removed parameters are those of the layers; every method removes as much
as it can without exceeding the size, which favours it. A method that stays more than two points below the size is shown and not
compared: its tool reaches the size by another.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.text import REMOVED
from bigcircuit.attribution.baselines import LEARNED_GATES
from bigcircuit.io.files import write_json
from bigcircuit.metrics.score import summarise_rows

TABLE = Path(__file__).with_suffix(".md")
PRUNER = Path(__file__).with_name("text_peers_prune.py")
TOOLS = ("optipfair", "torch-pruning")
_SHORT = 0.02
"""Share of the parameters that a method may miss the size by."""


def prune(tool: str, python: str, model: str, runs: Path) -> dict[str, Any]:
    """Prune a model with a tool. Returns perplexities with intervals by method and share."""
    corpus = runs / f"{Path(model).name}.jsonl"
    words = [python, str(PRUNER), tool, model, str(corpus), *map(str, REMOVED)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    rows = [json.loads(line) for line in corpus.read_text().splitlines()]
    tokens = [len(row["text"]) - 1 for row in rows if row["split"] == "test"]
    for row in found["methods"]:
        row |= perplexity(row.pop("losses"), tokens) if "losses" in row else {}
    return {**found, "full": perplexity(found["full"], tokens)}


def perplexity(losses: Sequence[float], tokens: Sequence[int]) -> dict[str, float]:
    """Perplexity with its 95% bootstrap interval over documents, of the summed losses of each."""
    weights = torch.tensor(tokens, dtype=torch.float64)
    (found,) = summarise_rows(
        (torch.tensor(losses, dtype=torch.float64) / weights).unsqueeze(0).numpy(), weights.numpy()
    )
    return {"mean": math.exp(found.mean), "low": math.exp(found.low), "high": math.exp(found.high)}


def table(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Write the tables of all models."""
    lines = [
        f"# General text: other tools, {date.today()}",
        "",
        " ".join((__doc__ or "").split("\n\n", 2)[2].split()),
        "",
    ]
    lines += [
        "Perplexity on held-out documents with its 95% bootstrap interval over documents. `ratio`: increase over the full model of "
        "the learned circuit's perplexity, divided by that of the tool's best method on these documents, at each size. In brackets "
        "what a method removes where it misses the size.",
        "",
    ]
    for result in results:
        full = result["learned"]["full"]
        lines += [
            f"## {Path(result['model']).name}",
            "",
            f"Full model {_interval(full)}.",
            "",
            "| tool | method | " + " | ".join(f"{share:.0%} removed" for share in REMOVED) + " |",
            "|---|---|" + "---|" * len(REMOVED),
        ]
        learned = [_learned(result, share) for share in REMOVED]
        lines.append(f"| bigcircuit | learned gates | {' | '.join(map(_interval, learned))} |")
        for tool in (name for name in TOOLS if name in result["tools"]):
            rows = result["tools"][tool]["methods"]
            for name in dict.fromkeys(row["method"] for row in rows):
                cells = [_cell(row) for row in rows if row["method"] == name]
                lines.append(f"| {tool} {result['tools'][tool]['version']} | {name} | {' | '.join(cells)} |")
            ratios = [
                (mine["mean"] - full["mean"]) / (min(compared(rows, share)) - full["mean"])
                for mine, share in zip(learned, REMOVED, strict=True)
            ]
            lines.append(f"| **ratio** | best of {tool} | {' | '.join(f'**{value:.2f}**' for value in ratios)} |")
        lines.append("")
    return lines


def compared(rows: Sequence[Mapping[str, Any]], share: float) -> list[float]:
    """List the perplexities of the methods that reach a size."""
    return [r["mean"] for r in rows if r["share"] == share and r.get("removed", 0.0) >= share - _SHORT]


def _learned(result: Mapping[str, Any], share: float) -> Mapping[str, Any]:
    rows = result["learned"]["methods"]
    return next(row for row in rows if row["method"] == LEARNED_GATES and row["removed"] == share)


def _cell(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return f"FAILS: {row['error']}"
    missed = f" ({row['removed']:.1%})" if row["removed"] < row["share"] - _SHORT else ""
    return _interval(row) + missed


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"


def main() -> None:
    """Run the tools that have no result yet, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="folders of causal language models")
    parser.add_argument("--runs", type=Path, default=Path("runs/text"), help="output folder of benchmarks.text")
    parser.add_argument("--tool", action="append", default=[], metavar="NAME=PYTHON")
    words = parser.parse_args()
    pythons = dict(one.split("=", 1) for one in words.tool)
    results = []
    for model in words.models:
        tools = {}
        for tool in TOOLS:
            file = words.runs / f"{Path(model).name}-{tool}.json"
            if not file.exists():
                write_json(file, prune(tool, pythons.get(tool, sys.executable), model, words.runs))
            tools[tool] = json.loads(file.read_text())
        learned = json.loads((words.runs / f"{Path(model).name}.json").read_text())
        results.append({"model": model, "learned": learned, "tools": tools})
        TABLE.write_text("\n".join(table(results)))
    print(TABLE.read_text())  # noqa: T201


if __name__ == "__main__":
    main()
