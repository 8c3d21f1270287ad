"""Names in figures: drawn as they are, whatever characters they have."""

import pytest

from bigcircuit.report.figures import Line, bars, lines, scatter
from bigcircuit.report.maps import heatmap
from bigcircuit.report.svg import inline_svg, write_figures


def row(name):
    return {"name": name, "kept": {"total": 5}, "scores": {"kl": {"mean": 0.1, "low": 0.05, "high": 0.2}}}


def drawn(name):
    """Every kind of figure that has names of circuits, models or settings in it."""
    series = [
        Line(label=name, x=[1, 2], y=[1, 2], end=name),
        Line(label="other", x=[1, 2], y=[2, 1], tip=name),
    ]
    return [
        lines("lines", name, series, "step", "KL"),
        scatter([row(name), row("other")]),
        bars("bars", "title", [name, "other"], {"Jaccard": [0.5, 0.2]}, "x"),
        heatmap("heat", "title", [[1, 0.5], [0.5, 1]], [name, "other"]),
    ]


@pytest.mark.parametrize("name", ["$a^$", "a$1 and $b", r"$\frac{$", r"\alpha", "{0} %s"])
def test_names_are_drawn_as_they_are(name, tmp_path):
    charts = drawn(name)
    for chart in charts:
        assert name in inline_svg(chart)
    assert len(write_figures(charts, tmp_path, ["png"])) == len(charts)


@pytest.mark.parametrize("character", ["\0", "\x07", "\ud800", "\uffff"])
def test_characters_that_cannot_be_drawn_are_a_sign(character):
    for chart in drawn(f"a{character}b"):
        assert "a\ufffdb" in inline_svg(chart) and character not in inline_svg(chart)
