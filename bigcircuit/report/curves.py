"""Line charts as inline SVG: no script, no network, colours from the page."""

from collections.abc import Mapping, Sequence
from typing import Any

Points = Sequence[tuple[float, float]]
_WIDTH, _HEIGHT = 460, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 8, 8, 24


def curve(title: str, lines: Mapping[str, Points]) -> dict[str, Any]:
    """What the template needs to draw one chart: polyline points by label, and tick labels; axes start at 0."""
    points = [point for line in lines.values() for point in line]
    if not points:
        return {"title": title, "lines": [], "ticks": []}
    right = max(x for x, _ in points) or 1
    top = max(y for _, y in points) or 1

    def place(x: float, y: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - _RIGHT) * x / right
        return across, _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * max(y, 0) / top

    drawn = [
        {"label": label, "points": " ".join("{:.1f},{:.1f}".format(*place(x, y)) for x, y in line)}
        for label, line in lines.items()
        if line
    ]
    ticks = [
        {"x": _LEFT - 6, "y": place(0, y)[1] + 4, "text": f"{y:,.0f}" if top >= 100 else f"{y:.3g}", "anchor": "end"}
        for y in (0, top / 2, top)
    ] + [{"x": place(x, 0)[0], "y": _HEIGHT - 6, "text": f"{x:g}", "anchor": "end"} for x in (right / 2, right)]
    return {"title": title, "lines": drawn, "ticks": ticks, "width": _WIDTH, "height": _HEIGHT}
