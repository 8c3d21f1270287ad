"""Write a page as one self-contained file.

The page fetches nothing and its policy (Content-Security-Policy) forbids it to: styles are inline, images are data URIs, the
one script is allowed by its hash. All text is escaped by jinja2, and absolute paths lose their folders
(share.py). It is complete without its script, which sorts tables, shows one circuit of several at a time, reads neurons back from
their images and changes the colour scheme.
"""

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bigcircuit.attribution.baselines import METHOD_LABELS
from bigcircuit.io.files import write_bytes
from bigcircuit.metrics.numbers import count_text, percent_text, precise_text, score_text
from bigcircuit.metrics.registry import page_scores
from bigcircuit.model.granularity import NODE_NAMES
from bigcircuit.report.share import as_it_is, share
from bigcircuit.report.svg import inline_svg

_TEMPLATES = "templates"


def write_page(template: str, page: Any, output: Path) -> Path:
    """Render the content of a page (Page or SweepPage) with a template, write it to `output`, and return that path."""
    environment = Environment(
        loader=PackageLoader("bigcircuit.report", _TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=share,
    )
    environment.filters |= {
        "number": count_text,
        "score": score_text,
        "precise": precise_text,
        "percent": percent_text,
        "visible": lambda text: as_it_is(visible_text(text)),
        "as_it_is": as_it_is,
        "chart": inline_svg,
    }
    environment.globals |= {"names": NODE_NAMES, "methods": METHOD_LABELS, "scores": page_scores()}
    style, script = (_text(name) for name in ("style.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = environment.get_template(template).render(
        page=page,
        style=Markup(style),
        script=Markup(script),
        policy=Markup(
            f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'; "
            "base-uri 'none'; form-action 'none'"
        ),
    )
    write_bytes(output, text.encode())
    return output


def _text(name: str) -> str:
    return resources.files("bigcircuit.report").joinpath(_TEMPLATES, name).read_text(encoding="utf-8")


def visible_text(text: Any) -> str:
    """Replace characters without ink in a token by signs, spaces only where the token is nothing but spaces."""
    if not isinstance(text, str):
        return json.dumps(text)
    spaces = {} if text.strip() else {" ": "␣"}  # beside letters a space shows by itself, as the style keeps it
    return "".join(spaces.get(c) or _SIGNS.get(c) or (c if c.isprintable() else f"U+{ord(c):04X}") for c in text) or "∅"


_SIGNS = {"\n": "↵", "\t": "⇥", "\u00a0": "⍽"}
