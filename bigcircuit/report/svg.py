"""Figures as SVG inside the page, and as files for papers."""

import html
import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from bigcircuit.io.files import write_bytes
from bigcircuit.report.figures import INK, MUTED, PAPER, RULE, STYLE, Chart

_THEME = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--paper)"}
_LINKS = re.compile(r"(<title>([^<]*)</title>)(.*?)(?=<title>|\Z)", re.DOTALL)
_NAMED = re.compile(r'<g id="(?:member:([^:"]*):)?tip:([^"]*)">')


def inline(chart: Chart) -> Markup:
    """An <svg> element whose colours follow the page, with tooltips where marks are named."""
    text = _bytes(chart.figure, "svg", salt=chart.key).decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = _NAMED.sub(_title, text)
    text = re.sub(r'<g id="[^"]*">', "<g>", text)
    for colour, name in _THEME.items():
        text = text.replace(f": {colour}", f": {name}")
    text = text.replace("stroke: var(--paper)", "stroke: var(--ring, var(--paper))")  # around a mark that is chosen
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL).replace(' target="_blank"', "")
    text = _LINKS.sub(lambda found: found[1] + found[3].replace("<a ", f'<a aria-label="{found[2]}" '), text)
    role = "group" if "<a " in text else "img"  # links within an image are hidden from those who listen to a page
    text = re.sub(
        r'(<svg[^>]*?) width="([\d.]+)pt"', rf'\1 role="{role}" aria-label="{html.escape(chart.title)}"', text
    )
    text = re.sub(r'(<svg[^>]*?) height="[\d.]+pt"', r"\1", text)
    return Markup(re.sub(r"\n\s*", "\n", text))


def _title(found: re.Match[str]) -> str:
    member = "" if found[1] is None else f' class="of-member" data-member="{found[1]}"'
    return f"<g{member}><title>{found[2]}</title>"


def write_figures(charts: Sequence[Chart], folder: Path, kinds: Sequence[str] = ("svg", "png", "pdf")) -> list[Path]:
    """Write every figure on white paper, as `<key>.svg` with its fonts as text, `.png` at 200 dpi and `.pdf`."""
    paths = []
    for chart in charts:
        for kind in kinds:
            path = folder / f"{chart.key}.{kind}"
            write_bytes(path, _bytes(chart.figure, kind, salt=chart.key, facecolor=PAPER))
            paths.append(path)
    return paths


def _bytes(figure: Figure, kind: str, salt: str, **options: str) -> bytes:
    """The same figure gives the same bytes."""
    file = io.BytesIO()
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    with mpl.rc_context(STYLE | {"svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in another script: a browser has the font
        figure.savefig(file, format=kind, dpi=200, metadata=undated, **options)
    return file.getvalue()
