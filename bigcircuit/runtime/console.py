"""The terminal: text of prompts, paths and files is printed as it is, whatever it looks like to a terminal or to rich."""

from typing import Any

from rich.console import Console
from rich.text import Text

from bigcircuit.errors import printable


class PlainConsole(Console):
    """Console to which all text is text: neither `[bold]` nor `:warning:` nor an escape sequence in a prompt or path acts.

    Tables measure and draw their titles, headings and cells by `render_str` too. What is to be styled is a `rich.text.Text`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **options)

    @property
    def can_redraw(self) -> bool:
        """Whether what is drawn can be drawn again at its place: on a terminal, and in a notebook."""
        return self.is_jupyter or self.is_terminal and not self.is_dumb_terminal

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a Text of a string, without markup."""
        return super().render_str(printable(text), **{**options, "emoji": False, "markup": False})
