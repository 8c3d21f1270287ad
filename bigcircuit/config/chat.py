"""Settings of `task.chat`: how conversations become the prompts that a chat model reads."""

from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, field_validator
from pydantic_core import PydanticCustomError

from bigcircuit.config.plain import text_problem, value_problem
from bigcircuit.config.section import Section


def _day(value: Any) -> Any:
    """Check a date and return its text, which YAML reads as a date where it has no quotes."""
    try:
        return date.fromisoformat(str(value)).isoformat()
    except ValueError:
        raise PydanticCustomError("not_a_date", "input should be a date such as 2026-01-31") from None


class ChatConfig(Section):
    """Conversations in place of prompts, rendered with the chat template of the model's tokenizer."""

    text: Literal["as_is", "user"] = "as_is"
    """What a prompt of plain text is: `as_is`: what the model reads; `user`: the message of a user, rendered like conversations."""
    system: str | None = None
    """System message before every conversation."""
    prefix: str = ""
    """Beginning of the model's reply, right behind the template's generation prompt; answers continue it."""
    arguments: dict[str, bool | int | float | str] = {}
    """Arguments of the template, such as {enable_thinking: false}; one that the template does not read is an error."""
    date: Annotated[str, BeforeValidator(_day)] = "2026-01-01"
    """The day that templates take for today, so that a run reads the same tokens on every day."""
    answers: tuple[str, ...] = ()
    """Beginnings of right replies, for tasks built from a list; empty: those of the task."""
    wrong_answers: tuple[str, ...] = ()
    """Beginnings of wrong replies, likewise."""

    @field_validator("*")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """Texts of messages are as long as they like, and may be empty."""
        texts = [value] if isinstance(value, str) else value if isinstance(value, tuple) else ()
        problem = next(filter(None, map(text_problem, texts)), None) if texts else None
        if not isinstance(value, (str, tuple)):
            problem = value_problem(value)
        if problem:
            raise PydanticCustomError("not_plain", "{problem}", {"problem": problem})
        return value
