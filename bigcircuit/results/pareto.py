"""Pareto front of points in two coordinates, such as neurons and KL, both better when lower. Pure."""

from collections.abc import Sequence

GOOD_KL = 0.1
"""KL in nats up to which a circuit counts as good: the smallest good circuit is named and shown first."""


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the indexes of the points that no other point dominates, in the order of the first coordinate.

    One point dominates another if it is as low in both coordinates and lower in one; equal points do not dominate each other.
    """
    found: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: points[index]):
        if not found or points[index][1] < points[found[-1]][1] or points[index] == points[found[-1]]:
            found.append(index)
    return found


def dominates(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Return whether `one` is as low as `other` in both coordinates, and lower in one."""
    return one != other and one[0] <= other[0] and one[1] <= other[1]
