"""Text of pages that are passed on: files are named without the folders of the machine that wrote them."""

from typing import Any

from markupsafe import Markup, escape

from bigcircuit.config.plain import without_folders


def share(value: Any) -> Any:
    """Take the folders of absolute paths out of text. Other values, markup and data URIs stay."""
    is_text = isinstance(value, str) and not isinstance(value, Markup) and not value.startswith("data:")
    return without_folders(value) if is_text else value


def as_it_is(text: str) -> Markup:
    """Escape text of the data, in which `share` must change nothing."""
    return escape(text)
