"""Show a pair as the tokens that a model reads: the clean prompt above the corrupted one, with marks where they differ; or a window
of general text."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.cells import cell_len

from bigcircuit.data.collate import shared_prefix
from bigcircuit.data.pair import Example, TokenIds

_LABELS = ("clean", "corrupted", "", "answers", "wrong answers")
_INDENT = max(map(len, _LABELS)) + 4
_ANSWERS = 4
"""Answers that are shown of each kind."""
_LONG, _KEPT = 80, 20
"""Tokens of a shared prefix above which only so many of its beginning and its end are shown, as of a long system message."""


def token_lines(example: Example, tokenizer: Any | None, width: int) -> Iterator[str]:
    """Yield lines that show a pair, each token between bars; `^` stands below tokens that differ. The middle of a long prefix that
    both prompts share is left out.

    width: columns of the terminal; longer prompts are broken. tokenizer: None shows token ids. A window is shown as its context and
    what is scored.
    """
    if example.is_window:
        yield from _window_lines(example, tokenizer, width)
        return
    above, below = (token_texts(tokenizer, (), ids) for ids in (example.clean, example.corrupted))
    widths = [max(map(cell_len, pieces)) for pieces in zip(above, below, strict=True)]
    columns = [
        (_padded(one, width), _padded(other, width), left != right)
        for one, other, width, left, right in zip(above, below, widths, example.clean, example.corrupted, strict=True)
    ]
    shared = shared_prefix(example.clean, example.corrupted)
    if shared > _LONG:
        gap = (f"... {shared - 2 * _KEPT} tokens that both share ...",) * 2
        columns = [*columns[:_KEPT], (*gap, False), *columns[shared - _KEPT :]]
    for part in _broken(columns, width - _INDENT):
        clean, corrupted, differs = zip(*part, strict=True)
        yield _line("clean", "|" + "|".join(clean) + "|")
        yield _line("corrupted", "|" + "|".join(corrupted) + "|")
        marks = "".join(
            " " + ("^" if mark else " ") * cell_len(text) for text, mark in zip(clean, differs, strict=True)
        )
        if marks.strip():
            yield _line("", marks.rstrip())
    for label, group in (("answers", example.answers), ("wrong answers", example.wrong_answers)):
        shown = ["|" + "|".join(token_texts(tokenizer, example.clean, ids)) + "|" for ids in group[:_ANSWERS]]
        more = [f"and {len(group) - _ANSWERS} more"] if len(group) > _ANSWERS else []
        yield _line(label, ", ".join([*shown, *more]))


def _window_lines(example: Example, tokenizer: Any | None, width: int) -> Iterator[str]:
    (scored,) = example.answers
    for label, before, ids in (("context", (), example.clean), ("scored", example.clean, scored)):
        columns = [(text, "", False) for text in token_texts(tokenizer, before, ids)]
        if len(ids) > _LONG:
            gap = (f"... {len(ids) - 2 * _KEPT} tokens ...", "", False)
            columns = [*columns[:_KEPT], gap, *columns[-_KEPT:]]
        for part in _broken(columns, width - _INDENT):
            yield _line(label, "|" + "|".join(text for text, _, _ in part) + "|")


def _line(label: str, text: str) -> str:
    return f"  {label:<{_INDENT - 2}}{text}"


def _padded(text: str, width: int) -> str:
    return text + " " * (width - cell_len(text))


def _broken(columns: Sequence[tuple[str, str, bool]], width: int) -> Iterator[list[tuple[str, str, bool]]]:
    """Cut the columns of a pair into parts that fit a line; at least one column each."""
    part: list[tuple[str, str, bool]] = []
    used = 1
    for column in columns:
        size = cell_len(column[0]) + 1
        if part and used + size > width:
            yield part
            part, used = [], 1
        part.append(column)
        used += size
    yield part


def token_texts(tokenizer: Any | None, before: TokenIds, ids: TokenIds) -> list[str]:
    """Return the text that each token adds to those before, with escapes for characters that a terminal does not print.

    A token that is a part of a character adds no text of its own; its name in the vocabulary is shown, or its id where the
    vocabulary of the model has more tokens than that of the tokenizer.
    """
    if tokenizer is None:
        return list(map(str, ids))
    texts = tokenizer.batch_decode(
        [[*before, *ids[:count]] for count in range(len(ids) + 1)], clean_up_tokenization_spaces=False
    )
    names = tokenizer.convert_ids_to_tokens(list(ids))
    return [
        _printable(text[len(last) :] if text.startswith(last) and text != last else name or f"[{number}]")
        for last, text, name, number in zip(texts, texts[1:], names, ids, strict=False)
    ]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
