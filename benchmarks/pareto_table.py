"""Write the tables and the plot of the results of benchmarks/pareto.py.

    python -m benchmarks.pareto_table [--rows benchmarks/pareto.jsonl] [--output benchmarks]

writes pareto.md and pareto.svg without measuring anything.
"""

import argparse
import json
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.fronts import SIZES, Row, at_most, front, levels, needed, of, shown
from benchmarks.pareto_plot import STYLES, draw

FOLDER = Path(__file__).parent
OURS, BOUND = "default", "default, fitted to the held-out pairs"
OTHERS = [*((other, size) for other in ("paper", "integrated gradients") for size in SIZES), (BOUND, "neurons")]
"""(method, unit of size) pairs that the default preset is compared with."""


def read(path: Path) -> list[dict[str, Any]]:
    """Read the results, sorted by pair file and method."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return sorted(rows, key=lambda row: (row["file"], list(STYLES).index(row["method"])))


def _files(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["file"] for row in rows))


def comparison(rows: Sequence[Row]) -> list[str]:
    """Compose a table: for every size of the default preset, the size that other methods need for the same KL."""
    lines = [
        "| pairs | neurons | heads | parameters | KL, nats (spread over seeds) | exact match | "
        + " | ".join(f"{other}: {size}" for other, size in OTHERS)
        + " |",
        "|---|---|---|---|---|---|" + "---|" * len(OTHERS),
    ]
    for file in _files(rows):
        for own in sorted(of(rows, file, OURS), key=lambda row: row["neurons"]):
            found = [r["kl"] for r in rows if (r["file"], r["method"], r["neurons"]) == (file, OURS, own["neurons"])]
            spread = f" ± {stdev(found):.3f}" if len(found) > 1 else ""
            against = [_need(of(rows, file, other), own, size) for other, size in OTHERS]
            lines.append(
                f"| {file} | {own['neurons']} / {own['of']} | {own['heads']:.1f} | {own['parameters']:.1%} | "
                f"{own['kl']:.3f}{spread} | {own['exact_match']:.3f} | " + " | ".join(against) + " |"
            )
    return lines


def _need(other: Sequence[Row], own: Row, size: str) -> str:
    """Format the size that another method needs for our KL, and our size as a share of that size."""
    if not other:
        return ""
    sign, found = needed(front(other, size), own["kl"], max(row[size] for row in other))
    bound = {"": "", ">": "<", "<": ">"}[sign]
    return f"{sign}{shown(found, size)} ({bound}{own[size] / found:.0%})"


def everything(rows: Sequence[Row], size: str) -> list[str]:
    """Compose a table: the KL of every method's best circuit of at most each size."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [f"| pairs | {SIZES[size]}, at most | " + " | ".join(methods) + " |", "|---|---|" + "---|" * len(methods)]
    for file in _files(rows):
        fronts = [front(of(rows, file, method), size) for method in methods]
        for level in levels([row for row in rows if row["file"] == file], size):
            found = [at_most(points, level) for points in fronts]
            cells = ["" if kl is None else f"{kl:.3f}" for kl in found]
            words = f"{level:.0%}" if size == "parameters" else f"{level}"
            lines.append(f"| {file} | {words} | " + " | ".join(cells) + " |")
    return lines


def stability(rows: Sequence[Row]) -> list[str]:
    """Compose a table: mean pairwise Jaccard index of the seeds of a size."""
    lines = ["| pairs | neurons | seeds | heads | neurons |", "|---|---|---|---|---|"]
    for file in _files(rows):
        mine = [row for row in rows if (row["file"], row["method"]) == (file, OURS)]
        for size in sorted({row["neurons"] for row in mine}):
            same = [row["jaccard"] for row in mine if row["neurons"] == size and row["jaccard"][0] is not None]
            if len(same) > 2:
                heads, neurons = (mean(pair[i] for pair in same) for i in (0, 1))
                lines.append(f"| {file} | {size} | {len(same)} | {heads:.3f} | {neurons:.3f} |")
    return lines


def write(rows: Sequence[Row], steps: int, published_steps: int, folder: Path = FOLDER) -> None:
    """Write pareto.md and pareto.svg. steps, published_steps: updates of the default and of the `paper` preset."""
    lines = [
        f"# Size against faithfulness, {date.today()}",
        "",
        "Interchange ablation; pairs of pretrained models, half of them held out, and of models with a planted circuit. All "
        "figures on held-out pairs, seeds of one size averaged. The default preset trains "
        f"{steps} steps of 16 pairs; the `paper` preset {published_steps} steps of 16 pairs with four to six "
        "strengths, 3 to .01 times its penalties "
        "(its own 6,250 steps of 32 take 8 times as long). `METHOD: SIZE` is the size that a method needs for the same KL, from "
        "its front in that size, and ours as a share of it; > and < where its front ends. Parameters are the share of those of "
        "the decoder layers. Circuits are asked for, and rankings cut, by neurons: how many heads and parameters they come to is "
        f"not asked. `{BOUND}` is no method but what masks could reach at best: trained, as many steps, on the very pairs that "
        "are measured.",
        "",
        *comparison(rows),
    ]
    note = "Of the best circuit of each method that keeps at most so many; empty where all keep more."
    for size, unit in SIZES.items():
        lines += ["", f"## KL of every method with the same {unit}", "", note, "", *everything(rows, size)]
    lines += ["", "## Stability: mean pairwise Jaccard over seeds", "", *stability(rows), "", "![fronts](pareto.svg)"]
    (folder / "pareto.md").write_text("\n".join(lines) + "\n")
    draw(rows, folder / "pareto.svg")


def main() -> None:
    """Read the command line and write tables and plot from existing rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=FOLDER / "pareto.jsonl")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of pareto.md and pareto.svg")
    parser.add_argument("--steps", type=int, default=600, help="of the default preset, as measured")
    parser.add_argument("--published-steps", type=int, default=1500, help="of the `paper` preset, as measured")
    arguments = parser.parse_args()
    rows = read(arguments.rows)
    arguments.output.mkdir(parents=True, exist_ok=True)
    write(rows, arguments.steps, arguments.published_steps, arguments.output)


if __name__ == "__main__":
    main()
