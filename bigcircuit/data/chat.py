"""Render conversations as the prompts that a chat model reads, by the chat template of its tokenizer."""

import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from bigcircuit.config.chat import ChatConfig
from bigcircuit.data.pair import Message, Pair
from bigcircuit.errors import UserError
from bigcircuit.model.library_errors import explain_library_errors

_NOW = re.compile(r"""\bstrftime_now\s*\(\s*(?P<quote>["'])(?P<form>[^"'\\]*)(?P=quote)\s*\)""")
"""Call by which a template asks for the date of today."""


def as_conversation(pair: Pair) -> Pair:
    """Turn a pair of plain texts into conversations of one user message each; another pair is returned as it is."""
    if not (isinstance(pair.clean, str) and isinstance(pair.corrupted, str)) or pair.messages:
        return pair
    return pair._replace(messages=((Message("user", pair.clean),), (Message("user", pair.corrupted),)))


class ChatRenderer:
    """Chat template of a tokenizer, with the settings of a task.

    transformers renders templates in its sandbox of jinja2. Raises UserError for a tokenizer without a template, and for an
    argument that the template does not read. subject: the pairs' file or task, in error messages.
    """

    def __init__(self, tokenizer: Any | None, settings: ChatConfig, subject: str) -> None:
        if tokenizer is None or not tokenizer.chat_template:
            raise UserError(
                f"{subject}: prompts are conversations, but the model's tokenizer has no chat template; give a chat model, or "
                "prompts of plain text"
            )
        with explain_library_errors(
            f"{subject}: the tokenizer has no default chat template", None, "name one `default`"
        ):
            template = tokenizer.get_chat_template()
        for name in settings.arguments:
            if not re.search(rf"\b{re.escape(name)}\b", template):
                raise UserError(
                    f"task.chat.arguments.{name}: the model's chat template does not read it; leave it out, or look the name up in "
                    "the template"
                )
        self._tokenizer, self._settings = tokenizer, settings
        self._template = self._dated(template)
        self._control = {*tokenizer.all_special_tokens} | {
            token.content for token in tokenizer.added_tokens_decoder.values() if token.special
        }

    def render(self, pair: Pair) -> Pair:
        """Return a pair of conversations with its prompts rendered. Raises UserError naming file, row and message."""
        clean, corrupted = (
            self._render(messages, f"{pair.source}: {name}")
            for messages, name in zip(pair.messages, ("clean", "corrupted"), strict=True)
        )
        return pair._replace(clean=clean, corrupted=corrupted)

    def _render(self, messages: Sequence[Message], subject: str) -> str:
        """Render a conversation up to where the model goes on: behind the generation prompt and the beginning of the reply."""
        settings = self._settings
        if settings.system is not None:
            if messages[0].role in ("system", "developer"):
                raise UserError(
                    f"{subject} has a {messages[0].role} message and task.chat.system is set; leave out one"
                )
            messages = (Message("system", settings.system), *messages)
        *before, last = messages
        prefix = settings.prefix
        if last.role == "assistant":
            if prefix:
                raise UserError(f"{subject} ends with an assistant message and task.chat.prefix is set; leave out one")
            messages, prefix = before, last.content
        if not messages or messages[-1].role not in ("user", "tool"):
            raise UserError(
                f"{subject} has no user message at its end for the model to reply to; end with one, or with the beginning of the "
                "reply as an assistant message after it"
            )
        for number, message in enumerate(messages, 1):
            found = next((token for token in sorted(self._control) if token in message.content), None)
            if found is not None:
                raise UserError(
                    f"{subject}: message {number} ({message.role}) has {found!r} in its text, which the tokenizer reads as a "
                    "control token; take it out"
                )
        with explain_library_errors(f"{subject}: the chat template refuses it", None, "change roles or messages"):
            text = self._tokenizer.apply_chat_template(
                [message._asdict() for message in messages],
                chat_template=self._template,
                tokenize=False,
                add_generation_prompt=True,
                **settings.arguments,
            )
        for number, message in enumerate(messages, 1):
            if message.content.strip() not in text:
                raise UserError(
                    f"{subject}: the chat template leaves out or changes the text of message {number} ({message.role}); reword it "
                    "or leave it out"
                )
        return text + prefix

    def _dated(self, template: str) -> str:
        """Write the date of the settings where a template asks for today's. Raises UserError where that cannot be done."""
        today = datetime.fromisoformat(self._settings.date)
        dated = _NOW.sub(lambda call: json.dumps(today.strftime(call["form"])), template)
        if re.search(r"\bstrftime_now\s*\(", dated):
            raise UserError(
                "the chat template asks for the date in a form that it makes up, so its prompts would be others every day; write "
                "the date into the template"
            )
        return dated
