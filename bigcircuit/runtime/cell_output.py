"""Progress in a notebook: one output of the cell, which is drawn again at its place. Needs IPython alone, no widgets."""

import io
from collections.abc import Callable
from typing import Any

from rich.console import RenderableType

from bigcircuit.runtime.console import PlainConsole

_WIDTH = 100
"""Columns of the text, as a notebook shows it without breaking lines."""


class CellOutput:
    """Stands in for rich's Live in a notebook, where Live needs ipywidgets and leaves nothing in the saved file.

    draw: returns what to show. transient: whether nothing stays once the output stops.
    """

    def __init__(self, draw: Callable[[], RenderableType], *, transient: bool) -> None:
        self._draw, self._transient = draw, transient
        self._shown = ""
        self._handle: Any = None

    def start(self) -> None:
        """Add the output to the cell that runs."""
        from IPython.display import display

        self._shown = self._text()
        self._handle = display({"text/plain": self._shown}, raw=True, display_id=True)

    def refresh(self) -> None:
        """Draw the output again, if its text has changed. From any thread."""
        self._show(self._text())

    def stop(self) -> None:
        """Draw the output for the last time, or empty it."""
        self._show("" if self._transient else self._text())

    def _show(self, text: str) -> None:
        if text != self._shown:
            self._shown = text
            self._handle.update({"text/plain": text}, raw=True)

    def _text(self) -> str:
        """Render without colours: a bar is then as long as what is done."""
        stream = io.StringIO()
        PlainConsole(file=stream, width=_WIDTH, no_color=True, force_jupyter=False).print(self._draw())
        return "\n".join(line.rstrip() for line in stream.getvalue().splitlines())
