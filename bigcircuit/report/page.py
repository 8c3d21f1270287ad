"""From what a page shows to one self-contained file.

The page fetches nothing and its policy (Content-Security-Policy) forbids it to: styles are inline, images are data URIs, the
one script is allowed by its hash. All text is escaped by jinja2. It is complete without its script, which sorts tables, shows
one circuit of several at a time, reads neurons back from their images and changes the colour scheme.
"""

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bigcircuit.io.files import write_bytes
from bigcircuit.model.granularity import NODE_NAMES
from bigcircuit.report import charts
from bigcircuit.report.svg import inline

_TEMPLATES = "templates"


def write_page(template: str, page: Any, output: Path) -> Path:
    """Write what a view (Page or SweepPage) shows, by its template; returns `output`."""
    environment = Environment(
        loader=PackageLoader("bigcircuit.report", _TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {f.__name__: f for f in (number, score, precise, percent, visible)} | {"chart": inline}
    environment.globals |= {"names": NODE_NAMES, "methods": charts.METHODS}
    style, script = (_text(name) for name in ("style.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = environment.get_template(template).render(
        page=page,
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'",
    )
    write_bytes(output, text.encode())
    return output


def _text(name: str) -> str:
    return resources.files("bigcircuit.report").joinpath(_TEMPLATES, name).read_text(encoding="utf-8")


def number(value: float) -> str:
    """A count with its thousands apart."""
    return f"{value:,}"


def score(value: float | None) -> str:
    """Three decimals with a true minus; a dash for what is not defined."""
    if value is None or value != value:
        return "–"
    return f"{0.0 if abs(value) < 0.0005 else value:,.3f}".replace("-", "−")


def precise(value: float | None) -> str:
    """As a score, but two digits of what is small and not zero."""
    return f"{value:.2g}" if value is not None and 1e-9 < abs(value) < 0.01 else score(value)


def percent(share: float) -> str:
    """A share as a percentage, with a decimal only below 10."""
    if 0 < share < 0.0005:
        return "<0.1%"
    return f"{share:.0%}" if share == 0 or share >= 0.1 else f"{share:.1%}"


def visible(text: Any) -> str:
    """A token as it can be seen: signs for what has no ink, spaces included where there is nothing else."""
    if not isinstance(text, str):
        return json.dumps(text)
    spaces = {} if text.strip() else {" ": "␣"}  # beside letters a space shows by itself, as the style keeps it
    return "".join(spaces.get(c) or _SIGNS.get(c) or (c if c.isprintable() else f"U+{ord(c):04X}") for c in text) or "∅"


_SIGNS = {"\n": "↵", "\t": "⇥", "\u00a0": "⍽"}
