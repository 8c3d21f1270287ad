"""Text of pages that are passed on: files are named without the folders of the machine that wrote them."""

import re
from typing import Any

from markupsafe import Markup, escape

_FOLDERS = re.compile(
    r"""(?:^|(?<=["'=]))(?:~|[A-Za-z]:)?/(?:[^/"'\n:;]+/)+(?=[^/\s"'])"""  # a whole value, which may hold spaces
    r"""|(?<![\w.~…/:+-])(?:~|[A-Za-z]:)?/(?:[^/\s"',:;()\[\]{}]+/)+(?=[^/\s"'])"""  # within a sentence
)


def without_folders(value: Any) -> Any:
    """Replace the folders of absolute paths in text by `…/`: `…/llama` of `/home/me/llama`.

    Other values, markup and data URIs stay.
    """
    is_text = isinstance(value, str) and not isinstance(value, Markup) and not value.startswith("data:")
    return _FOLDERS.sub("…/", value) if is_text else value


def as_it_is(text: str) -> Markup:
    """Escape text of the data, in which `without_folders` must change nothing."""
    return escape(text)
