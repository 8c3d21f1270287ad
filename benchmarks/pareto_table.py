"""The table and the plot of what benchmarks/pareto.py has measured."""

import argparse
import math
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

Row = Mapping[str, Any]
FOLDER = Path(__file__).parent
OURS, PUBLISHED, ATTRIBUTION = "default", "paper", "integrated gradients"


def front(rows: Sequence[Row], size: str) -> list[tuple[float, float]]:
    """(size, best KL of circuits up to that size), by size."""
    points, best = [], math.inf
    for row in sorted(rows, key=lambda row: (row[size], row["kl"])):
        if row["kl"] < best:
            best = row["kl"]
            points.append((float(row[size]), best))
    return points


def needed(points: Sequence[tuple[float, float]], kl: float, largest: float) -> tuple[str, float]:
    """Size at which a front reaches a KL, by interpolation of its logarithm: ("", size), or ("<" or ">", what was tried)."""
    if not points or points[-1][1] > kl:
        return ">", largest
    if points[0][1] <= kl:
        return "<", points[0][0]
    for (small, worse), (large, better) in zip(points, points[1:], strict=False):
        if better <= kl:
            share = (math.log(worse) - math.log(kl)) / (math.log(worse) - math.log(max(better, 1e-9)))
            return "", small + share * (large - small)
    raise AssertionError("the last point is low enough")


def _against(sign: str, size: float, mine: float) -> str:
    """What the other method needs, and ours as a share of it."""
    bound = {"": "", ">": "<", "<": ">"}[sign]
    return f"{sign}{size:.0f} ({bound}{mine / size:.0%})"


def comparison(rows: Sequence[Row]) -> list[str]:
    """For every size of the default preset, what the published preset and integrated gradients need for the same KL."""
    lines = [
        "| pairs | neurons | heads | parameters | KL, nats (spread over seeds) | exact match | `paper` needs (ours of it) | "
        "integrated gradients need (ours of it) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for file in dict.fromkeys(row["file"] for row in rows):
        mine = [row for row in rows if row["file"] == file and row["method"] == OURS]
        fronts = {m: front([r for r in rows if (r["file"], r["method"]) == (file, m)], "neurons")
                  for m in (PUBLISHED, ATTRIBUTION)}  # fmt: skip
        for size in sorted({row["neurons"] for row in mine}):
            same = [row for row in mine if row["neurons"] == size]
            average = {key: mean(row[key] for row in same) for key in ("kl", "heads", "parameters", "exact_match")}
            kl = average["kl"]
            spread = f" ± {stdev(row['kl'] for row in same):.3f}" if len(same) > 1 else ""
            tried = {
                m: max((r["neurons"] for r in rows if (r["file"], r["method"]) == (file, m)), default=0) for m in fronts
            }
            against = [_against(*needed(fronts[m], kl, tried[m]), size) if fronts[m] else "" for m in fronts]
            lines.append(
                f"| {file} | {size} / {same[0]['of']} | {average['heads']:.1f} | {average['parameters']:.1%} | {kl:.3f}{spread} | "
                f"{average['exact_match']:.3f} | {against[0]} | {against[1]} |"
            )
    return lines


def everything(rows: Sequence[Row]) -> list[str]:
    """KL of every method at common sizes, interpolated on its front."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = ["| pairs | share kept | " + " | ".join(methods) + " |", "|---|---|" + "---|" * len(methods)]
    for file in dict.fromkeys(row["file"] for row in rows):
        for share in (0.06, 0.12, 0.25, 0.4):
            cells = []
            for method in methods:
                mine = [row for row in rows if (row["file"], row["method"]) == (file, method)]
                at = [r["kl"] for r in mine if abs(r["neurons"] / r["of"] - share) < 0.005]
                cells.append(f"{mean(at):.3f}" if at else "")
            lines.append(f"| {file} | {share:.0%} | " + " | ".join(cells) + " |")
    return lines


def stability(rows: Sequence[Row]) -> list[str]:
    """Mean pairwise Jaccard of the seeds of one size."""
    lines = ["| pairs | neurons | seeds | heads | neurons |", "|---|---|---|---|---|"]
    for file in dict.fromkeys(row["file"] for row in rows):
        mine = [row for row in rows if (row["file"], row["method"]) == (file, OURS)]
        for size in sorted({row["neurons"] for row in mine}):
            same = [row["jaccard"] for row in mine if row["neurons"] == size and row["jaccard"][0] is not None]
            if len(same) > 2:
                heads, neurons = (mean(pair[i] for pair in same) for i in (0, 1))
                lines.append(f"| {file} | {size} | {len(same)} | {heads:.3f} | {neurons:.3f} |")
    return lines


def draw(rows: Sequence[Row]) -> None:
    """pareto.svg: one panel a pair file, one line a method."""
    files, methods = (list(dict.fromkeys(row[key] for row in rows)) for key in ("file", "method"))
    figure = Figure(figsize=(13, 3.4 * math.ceil(len(files) / 4)), layout="constrained")
    panels = figure.subplots(math.ceil(len(files) / 4), min(len(files), 4), squeeze=False).flat
    for panel, file in zip(panels, files, strict=False):
        for number, method in enumerate(methods):
            points = front([r for r in rows if (r["file"], r["method"]) == (file, method)], "neurons")
            learned = method in (OURS, PUBLISHED)
            panel.plot(*zip(*points, strict=True), marker="os"[method == PUBLISHED] if learned else ".", lw=2 if learned else 1,
                       ms=5 if learned else 3, color=f"C{number}", label=method) if points else None  # fmt: skip
        panel.set(yscale="log", title=file, xlabel="site neurons kept", ylabel="held-out KL, nats")
        panel.title.set_fontsize(9)
        panel.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(FOLDER / "pareto.svg", metadata={"Date": None})


def write(rows: Sequence[Row], arguments: argparse.Namespace) -> None:
    """Both files."""
    lines = [
        f"# Size against faithfulness, {date.today()}",
        "",
        "Interchange ablation, half of the pairs held out; all figures on held-out pairs. The default preset trains "
        f"{arguments.steps} steps of 16 pairs; the `paper` preset {arguments.published_steps} steps of 16 pairs with 1, .3, .1 and "
        ".03 of its penalties (its own 6,250 steps of 32 take 8 times as long). `needs`: neurons for the same KL, from "
        "its front; > and < where the front ends.",
        "",
        *comparison(rows),
        "",
        "## KL of every method at the same share of neurons",
        "",
        *everything(rows),
        "",
        "## Stability: mean pairwise Jaccard over seeds",
        "",
        *stability(rows),
        "",
        "![fronts](pareto.svg)",
    ]
    (FOLDER / "pareto.md").write_text("\n".join(lines) + "\n")
    draw(rows)
