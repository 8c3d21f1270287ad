"""Compute fronts of size against KL from the rows that benchmarks/pareto.py measures."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

EXACT = 1e-5
"""Nats. Smaller KL is rounding of float32 and is set to this value."""
Row = Mapping[str, Any]
SIZES = {"neurons": "neurons", "heads": "heads", "parameters": "parameters"}
"""Key of a row -> unit of size. Parameters are a share of the decoder layers' parameters."""


def of(rows: Sequence[Row], file: str, method: str) -> list[Row]:
    """Return the rows of a method on a pair file, averaged over the seeds of a size."""
    same: dict[tuple[int, int | None], list[Row]] = {}
    for row in rows:
        if (row["file"], row["method"]) == (file, method):
            same.setdefault((row["neurons"], row.get("asked_heads")), []).append(row)
    keys = ("heads", "parameters", "kl", "exact_match")
    averaged = [{**found[0], **{key: mean(row[key] for row in found) for key in keys}} for found in same.values()]
    return [{**row, "kl": max(row["kl"], EXACT)} for row in averaged]


def front(rows: Sequence[Row], size: str) -> list[tuple[float, float]]:
    """Return (size, lowest KL of all circuits up to that size), in order of size."""
    points, best = [], math.inf
    for row in sorted(rows, key=lambda row: (row[size], row["kl"])):
        if row["kl"] < best:
            best = row["kl"]
            points.append((float(row[size]), best))
    return points


def at_most(points: Sequence[tuple[float, float]], size: float) -> float | None:
    """Return the KL of a front's best circuit of at most this size, without interpolation; None if all are larger."""
    fitting = [kl for own, kl in points if own <= size * (1 + 1e-9)]
    return min(fitting, default=None)


def needed(points: Sequence[tuple[float, float]], kl: float, largest: float) -> tuple[str, float]:
    """Return the size at which a front reaches a KL, by interpolation of log KL.

    Returns ("", size), or ("<", smallest size) or (">", largest size) for a KL outside the front.
    """
    if not points or points[-1][1] > kl:
        return ">", largest
    if points[0][1] <= kl:
        return "<", points[0][0]
    for (small, worse), (large, better) in zip(points, points[1:], strict=False):
        if better <= kl:
            share = (math.log(worse) - math.log(kl)) / (math.log(worse) - math.log(better))
            return "", small + share * (large - small)
    raise AssertionError("the last point is low enough")


def levels(rows: Sequence[Row], size: str) -> list[float]:
    """Return the sizes at which methods are compared on a pair file."""
    if size == "parameters":
        return [0.1, 0.2, 0.3, 0.4]
    if size == "neurons":
        return [round(share * rows[0]["of"]) for share in (0.06, 0.12, 0.25, 0.4)]
    every = max(row["heads"] for row in rows)  # the largest circuits have all heads
    return [round(share * every) for share in (0.2, 0.4, 0.6, 0.8)]


def shown(value: float, size: str) -> str:
    """Format a size: parameters as a percentage, heads with a decimal where they are a mean over seeds."""
    return f"{value:.1%}" if size == "parameters" else f"{value:.0f}" if size == "neurons" else f"{value:.1f}"
