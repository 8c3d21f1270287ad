"""Notes on pairs and documents that can be scored but are perhaps not tokenised as their author means, each with a count and a
remedy."""

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from bigcircuit.config.schema import TaskConfig
from bigcircuit.data.pair import Example, Pair, TokenIds
from bigcircuit.data.tokenize import added_tokens
from bigcircuit.errors import UserError
from bigcircuit.model.library_errors import explain_library_errors

_COMPLETE = re.compile(r"([^\W_]|[.,;:!?)\]}]|\s=)\Z")
"""End of a prompt after which the next word has a space before it."""


class _Note(NamedTuple):
    """Remark on some pairs or documents."""

    sources: Sequence[str]
    """Origin of each that is concerned."""
    what: str
    remedy: str


def notes(task: TaskConfig, pairs: Sequence[Pair], examples: Sequence[Example], tokenizer: Any | None) -> list[str]:
    """List what the user should know about the tokens of a task before training.

    pairs: all pairs of the task. examples: the tokenised ones; `Example.id` is an index into `pairs`.
    """
    of_text = [example for example in examples if isinstance(pairs[example.id].clean, str)]
    if tokenizer is None or not of_text:
        return []
    texts = [text for e in of_text for text in pairs[e.id][:2] if isinstance(text, str)]
    start = added_tokens(tokenizer, texts)[0] if task.special_tokens else ()
    # Chat templates write special tokens themselves.
    plain = [example for example in of_text if not pairs[example.id].messages]
    unspaced = _unspaced(pairs, of_text, tokenizer)
    unknown = _unknown({e.id: _joined(pairs[e.id]) for e in of_text}, {e.id: _all_ids(e) for e in of_text}, tokenizer)
    path = task.path or task.name
    found = (
        *_special_notes(
            [e.source for e in plain if _has_two_starts(start, e.clean) or _has_two_starts(start, e.corrupted)],
            [e.source for e in plain if _has_end(e, tokenizer.eos_token_id, max(len(start), 1))],
            start,
            tokenizer,
        ),
        _unknown_note([e.source for e in of_text if e.id in unknown], unknown),
        _Note(
            [e.source for e in of_text if pairs[e.id].numbers],
            "have answers that are numbers after a text prompt, which are read as text",
            f'write "5" in {path} to say so, or [[5]] where 5 is a token id',
        ),
        _Note(
            [e.source for e in of_text if _has_two_spaces(pairs[e.id])],
            "have a space at the end of the prompt and another at the beginning of an answer",
            "remove one of the two",
        ),
        _Note(
            [e.source for e in of_text if e.id in unspaced],
            "have an answer without a space before it, though the prompt ends with a whole word",
            "set task.leading_space to add, or begin the answers with a space",
        ),
    )
    return _lines(found, path, f"{len(examples)} pairs")


def size_notes(task: TaskConfig, pairs: int) -> list[str]:
    """Say that a pair file is read whole, where `task.size` is set to fewer pairs than it has."""
    asked = task.name == "pairs" and task.size != TaskConfig().size and task.size < pairs
    return (
        [f"{task.path}: all its {pairs} pairs are read; task.size, {task.size}, is for tasks that are built"]
        if asked
        else []
    )


def corpus_notes(
    task: TaskConfig, texts: Mapping[str, str], ids: Mapping[str, TokenIds], documents: int, tokenizer: Any | None
) -> list[str]:
    """List what the user should know about the tokens of a corpus before training.

    texts: text of each document that is not token ids, by its origin `file:row`. ids: its tokens, with those that the tokenizer
    adds. documents: number of all documents.
    """
    if tokenizer is None or not texts:
        return []
    start, end = added_tokens(tokenizer, list(texts.values())) if task.special_tokens else ((), ())
    inner = {source: row[max(len(start), 1) : len(row) - len(end)] for source, row in ids.items()}
    unknown = _unknown(texts, {source: [row] for source, row in ids.items()}, tokenizer)
    found = (
        *_special_notes(
            [source for source, row in ids.items() if _has_two_starts(start, row)],
            [source for source, row in inner.items() if tokenizer.eos_token_id in row],
            start,
            tokenizer,
        ),
        _unknown_note([source for source in texts if source in unknown], unknown),
    )
    return _lines(found, str(task.path), f"{documents} documents")


def _lines(notes_found: Iterable[_Note], path: str, total: str) -> list[str]:
    """Write the notes that concern anything."""
    return [
        f"{path}: {len(note.sources)} of {total} {note.what}; {note.remedy} (the first: {note.sources[0]})"
        for note in notes_found
        if note.sources
    ]


def _special_notes(begun: Sequence[str], ended: Sequence[str], start: TokenIds, tokenizer: Any) -> tuple[_Note, _Note]:
    """Make the notes on special tokens in texts. begun, ended: origins of texts with a second start, with an end token."""
    return (
        _Note(
            begun,
            f"begin with {tokenizer.decode(list(start))!r}, and the tokenizer adds it once more",
            "set task.special_tokens to false, or leave it out of the texts",
        ),
        _Note(
            ended,
            f"have the end token {tokenizer.eos_token!r} in their texts, where it stays a token of the text",
            "set task.path to a file without it if the model should not read or predict it",
        ),
    )


def _unknown_note(sources: Sequence[str], unknown: Mapping[Any, str]) -> _Note:
    example = next(iter(unknown.values()), "")
    return _Note(
        sources,
        f"have text without tokens, such as {example!r}, which is left out or read as unknown",
        "reword it",
    )


def with_leading_space(pair: Pair) -> Pair:
    """Put a space before the answers of a pair that lack one."""
    prompt = pair.clean

    def spaced(answer: Any) -> Any:
        return (
            " " + answer if isinstance(answer, str) and isinstance(prompt, str) and _lacks(prompt, answer) else answer
        )

    return pair._replace(answers=tuple(map(spaced, pair.answers)), wrong_answers=tuple(map(spaced, pair.wrong_answers)))


def _has_two_starts(start: TokenIds, ids: TokenIds) -> bool:
    """Return whether tokens begin twice with what the tokenizer adds before every text."""
    return bool(start) and ids[: 2 * len(start)] == start * 2


def _has_two_spaces(pair: Pair) -> bool:
    ends = [isinstance(prompt, str) and prompt.endswith(" ") for prompt in (pair.clean, pair.corrupted)]
    return any(ends) and any(
        isinstance(answer, str) and answer.startswith(" ") for answer in (*pair.answers, *pair.wrong_answers)
    )


def _has_end(example: Example, end: int | None, start: int) -> bool:
    """Return whether an end token is in a pair. start: tokens of the prompts that do not count, such as the first one, which
    is the same as the end token in some tokenizers."""
    prompts = (example.clean[start:], example.corrupted[start:])
    return end is not None and any(end in ids for ids in (*prompts, *example.answers, *example.wrong_answers))


def _lacks(prompt: str, answer: str) -> bool:
    """Return whether an answer looks like a new word but has no space before it. Only letters of scripts that have cases count,
    because others may write no spaces, and digits, which may continue a number."""
    first = answer[:1]
    if first.isdigit():
        return bool(_COMPLETE.search(prompt)) and not prompt[-1].isdigit()
    return (first.islower() or first.isupper()) and bool(_COMPLETE.search(prompt))


def _unspaced(pairs: Sequence[Pair], examples: Sequence[Example], tokenizer: Any) -> set[int]:
    """Find the pairs, by Example.id, with an answer that lacks its space and would have no more tokens with it.

    A tokenizer of single characters, say, has no tokens that begin with a space: there nothing can be told.
    """
    lacking = [
        (example.id, prompt, answer)
        for example in examples
        for answer in (*pairs[example.id].answers, *pairs[example.id].wrong_answers)
        if isinstance(prompt := pairs[example.id].clean, str) and isinstance(answer, str) and _lacks(prompt, answer)
    ]
    if not lacking:
        return set()
    texts = [prompt + space + answer for space in ("", " ") for _, prompt, answer in lacking]
    subject = (
        f"{pairs[lacking[0][0]].source}: the model's tokenizer cannot read its texts with a space before the answers"
    )
    with explain_library_errors(subject, None, "mend the tokenizer"):
        rows = tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"]
    with_space = rows[len(lacking) :]
    return {one[0] for one, row, spaced in zip(lacking, rows, with_space, strict=False) if len(spaced) <= len(row)}


def _unknown(texts: Mapping[Any, str], ids: Mapping[Any, Sequence[TokenIds]], tokenizer: Any) -> dict[Any, str]:
    """Find the texts with a part that the tokenizer reads as its unknown token or leaves out, and what that is.

    texts, ids: a text, and the tokens of its parts, by what the result is keyed with.
    """
    others = {None, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
    unknown = {tokenizer.unk_token_id} - others  # in some tokenizers without unknown text it is one of these
    found = {key: tokenizer.unk_token for key, rows in ids.items() if any(not unknown.isdisjoint(row) for row in rows)}
    characters = {key: set(text) for key, text in texts.items()}
    lost = _left_out(sorted(c for c in set().union(*characters.values()) if not c.isspace()), tokenizer)
    return found | {key: min(there) for key, text in characters.items() if (there := lost & text)}


def _left_out(characters: Sequence[str], tokenizer: Any) -> set[str]:
    """Find the characters of which a tokenizer makes no token."""
    lost: set[str] = set()
    # A tokenizer of whole words may raise on a lone character.
    with suppress(UserError), explain_library_errors("characters", None, "reword them"):
        rows = tokenizer(list(characters), add_special_tokens=False, return_attention_mask=False)["input_ids"]
        lost = {c for c, text in zip(characters, tokenizer.batch_decode(rows), strict=True) if not text.strip()}
    return lost


def _joined(pair: Pair) -> str:
    """Return the texts of a pair, without its token ids, as one."""
    texts = (text for part in pair[:4] for text in ([part] if isinstance(part, str) else part))
    return "".join(text for text in texts if isinstance(text, str))


def _all_ids(example: Example) -> tuple[TokenIds, ...]:
    return (example.clean, example.corrupted, *example.answers, *example.wrong_answers)
