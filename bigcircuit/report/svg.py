"""Figures as SVG elements of a page, and as files for papers."""

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure

from bigcircuit.io.files import write_bytes
from bigcircuit.report.figures import INK, MUTED, PAPER, RULE, STYLE, Chart
from bigcircuit.results.locate import unique

_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
_THEME = {INK: "var(--ink)", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--paper)"}
_NAMED = re.compile(r"(?:member:([^:]*):)?tip:(.*)", re.DOTALL)
"""Ids of named marks, see figures.py: index of the circuit, if any, and text of the tooltip."""
ElementTree.register_namespace("", _SVG)
ElementTree.register_namespace("xlink", _LINK)


def inline_svg(chart: Chart) -> Markup:
    """Return a figure as an <svg> element whose colours follow the page, with tooltips on named marks."""
    root = ElementTree.fromstring(_file_content(chart.figure, "svg", salt=_file_name(chart.key)))
    _remove(root, "metadata", "style")
    for element in root.iter():
        _tidy(element)
    for group in list(root.iter(_tag("g"))):
        named = _NAMED.fullmatch(group.attrib.pop("id", ""))
        if named is not None:
            _add_tooltip(group, named[1], named[2])
    del root.attrib["width"], root.attrib["height"]
    # Links within an image are hidden from screen readers.
    root.set("role", "img" if root.find(f".//{_tag('a')}") is None else "group")
    root.set("aria-label", chart.title)
    return Markup(ElementTree.tostring(root, encoding="unicode"))


def _tag(name: str) -> str:
    return f"{{{_SVG}}}{name}"


def _remove(root: ElementTree.Element, *names: str) -> None:
    """Remove all elements of these names."""
    tags = {_tag(name) for name in names}
    for parent in list(root.iter()):
        for child in [child for child in parent if child.tag in tags]:
            parent.remove(child)


def _tidy(element: ElementTree.Element) -> None:
    """Replace colours of an element by those of the page, and drop white space and what a page does not need."""
    if style := element.get("style"):
        element.set("style", "; ".join(_themed(one.strip()) for one in style.split(";") if one.strip()))
    if path := element.get("d"):
        element.set("d", " ".join(path.split()))
    element.attrib.pop("target", None)
    if element.tag == _tag("a") and (href := element.attrib.pop(f"{{{_LINK}}}href", None)):
        element.set("href", href)  # with xlink:href alone, <a> has no role for screen readers
    if len(element) and not (element.text or "").strip():
        element.text = None
    if element.tail and not element.tail.strip():
        element.tail = "\n"


def _themed(declaration: str) -> str:
    """Replace the colour of a CSS declaration."""
    name, _, value = declaration.partition(": ")
    themed = _THEME.get(value, value)
    if name == "stroke" and value == PAPER:
        themed = f"var(--ring, {themed})"  # around a mark that is chosen
    return f"{name}: {themed}"


def _add_tooltip(group: ElementTree.Element, member: str | None, text: str) -> None:
    """Give a group a tooltip, which also labels its links. member: index of the circuit that the group shows, or None."""
    if member is not None:
        group.set("class", "of-member")
        group.set("data-member", member)
    for link in group.iter(_tag("a")):
        link.set("aria-label", text)
    title = ElementTree.Element(_tag("title"))
    title.text = text
    group.insert(0, title)


def write_figures(charts: Sequence[Chart], folder: Path, kinds: Sequence[str] = ("svg", "png", "pdf")) -> list[Path]:
    """Write figures on white paper: `<key>.svg` with its fonts as text, `.png` at 200 dpi and `.pdf`; return the paths.

    Keys may hold names from files of others: whatever they are, all files are within the folder.
    """
    paths: list[Path] = []
    taken: set[str] = set()
    for chart in charts:
        taken.add(name := unique(_file_name(chart.key), taken))
        for kind in kinds:
            path = folder / f"{name}.{kind}"
            write_bytes(path, _file_content(chart.figure, kind, salt=name, facecolor=PAPER))
            paths.append(path)
    return paths


def _file_name(key: str) -> str:
    """Return a key as a plain file name: letters, digits, `-`, `_` and `.`, no path, no hidden file, at most 100 characters."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in key).lstrip(".")[:100]


def _file_content(figure: Figure, kind: str, salt: str, **options: Any) -> bytes:
    """Render a figure; the same figure gives the same bytes. salt: of the ids within an SVG."""
    file = io.BytesIO()
    undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    with mpl.rc_context(STYLE | {"svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # a name in another script: a browser has the font
        figure.savefig(file, format=kind, dpi=200, metadata=undated, **options)
    return file.getvalue()
