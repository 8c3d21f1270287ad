"""From the files of runs to one self-contained page.

The page fetches nothing and its policy (Content-Security-Policy) forbids it to: styles are inline, images are data URIs, the
one script is allowed by its hash. All text is escaped by jinja2. It is complete without its script, which sorts tables, shows
one circuit of several at a time, reads neurons back from their images and changes the colour scheme.
"""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bigcircuit.errors import UserError
from bigcircuit.report import charts, views
from bigcircuit.report.figures import Chart
from bigcircuit.report.sources import Json, open_source
from bigcircuit.report.svg import inline, write_figures
from bigcircuit.storage import write_bytes

_TEMPLATES = "templates"


def render(folder: Path, summary: Json | None = None) -> Path:
    """Write report.html of a run folder, or of a folder with an evaluation or a comparison; returns its path.

    summary: what summary.json is going to hold; a run writes it last. Raises UserError naming the file that is missing or
    damaged.
    """
    return _write(views.page([open_source(folder, summary)]), folder / "report.html")


def report(names: Sequence[str], output: Path | None = None, figures: Path | None = None) -> list[Path]:
    """Verb `report`: the page of one run or circuit file, or the comparison of several; what was written.

    figures: folder for every figure of the page as SVG, PNG and PDF. Raises UserError.
    """
    if not names:
        raise UserError("report needs a run folder or a circuit file: bigcircuit report runs/quickstart")
    sources = [open_source(Path(name)) for name in names]
    first = sources[0].path
    usual = Path("comparison.html") if len(names) > 1 else first / "report.html"
    page = views.page(sources)
    written = [_write(page, output or (usual if first.is_dir() or len(names) > 1 else first.with_suffix(".html")))]
    if figures is not None:
        written += write_figures([*page.all_charts(), *charts.maps(page.drawings())], figures)
    return written


def _write(page: views.Page, output: Path) -> Path:
    environment = Environment(
        loader=PackageLoader("bigcircuit.report", _TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "score": score, "percent": percent, "visible": visible, "chart": _chart}
    style, script = (_text(name) for name in ("style.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = environment.get_template("page.html").render(
        page=page,
        names=charts.GRANULARITY,
        methods=charts.METHODS,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'",
    )
    write_bytes(output, text.encode())
    return output


def _text(name: str) -> str:
    return resources.files("bigcircuit.report").joinpath(_TEMPLATES, name).read_text(encoding="utf-8")


def _chart(chart: Chart) -> Markup:
    return inline(chart)


def number(value: float) -> str:
    """A count with its thousands apart."""
    return f"{value:,}"


def score(value: float | None) -> str:
    """Three decimals with a true minus; a dash for what is not defined."""
    if value is None or value != value:
        return "–"
    return f"{0.0 if abs(value) < 0.0005 else value:,.3f}".replace("-", "−")


def percent(share: float) -> str:
    """A share as a percentage, with a decimal only below 10."""
    if 0 < share < 0.0005:
        return "<0.1%"
    return f"{share:.0%}" if share == 0 or share >= 0.1 else f"{share:.1%}"


def visible(text: Any) -> str:
    """A token as it can be seen: breaks and tabs as signs; spaces are kept by the style."""
    if not isinstance(text, str):
        return json.dumps(text)
    return text.replace("\n", "↵").replace("\t", "⇥") or "∅"
