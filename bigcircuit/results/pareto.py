"""The Pareto front: what nothing else beats in both size and KL. Pure."""

from collections.abc import Sequence

GOOD = 0.1
"""KL in nats: the smallest circuit that has at most this is named and shown first."""


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indexes of the points that no other dominates, by the first coordinate.

    One point dominates another if it is as low in both coordinates and lower in one; equal points do not dominate each other.
    """
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: points[index]):
        if not found or points[index][1] < points[found[-1]][1] or points[index] == points[found[-1]]:
            found.append(index)
    return found


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether `one` is as low as `other` in both coordinates, and lower in one."""
    return one != other and one[0] <= other[0] and one[1] <= other[1]
