"""General text: documents of a corpus as windows of tokens, every one of which is scored once.

A window is an Example whose only answer is what follows its context, so that passes, splits and scores of pairs serve both.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bigcircuit.config.schema import TaskConfig
from bigcircuit.config.text import TextConfig
from bigcircuit.data.notes import corpus_notes
from bigcircuit.data.pair import Example, TokenIds
from bigcircuit.data.readers.cells import is_flat
from bigcircuit.data.readers.rows import read_rows, split_of
from bigcircuit.data.splits import SPLITS
from bigcircuit.errors import UserError
from bigcircuit.model.library_errors import explain_library_errors

_END_OF_TEXT = "<|endoftext|>"
"""Line between documents of plain text, where there is any; else documents are between blank lines."""


class Document(NamedTuple):
    """One text of a corpus, before tokenisation."""

    text: str | TokenIds
    split: str
    """As the row names it; empty if it does not."""
    source: str


def read_documents(path: str, column: str) -> list[Document]:
    """Read the documents of a plain text file (.txt), or a column of JSONL, JSON, CSV, Parquet or a data set, each text once.

    Raises UserError naming the file, and the row where there is one.
    """
    found = _plain(path) if path.lower().endswith((".txt", ".text")) else _rows(path, column)
    seen: dict[str | TokenIds, Document] = {}
    for document in found:
        before = seen.setdefault(document.text, document)
        if before.split != document.split:
            raise UserError(
                f"{document.source}: its text is in split {document.split or 'none'} and, at {before.source}, in split "
                f"{before.split or 'none'}; remove one"
            )
    return list(seen.values())


def _plain(path: str) -> Iterator[Document]:
    file = Path(path)
    if not file.exists():
        raise UserError(f"{path}: no such file; set task.path to a corpus")
    try:
        text = file.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}); save the file as UTF-8") from error
    mark = _END_OF_TEXT if f"\n{_END_OF_TEXT}" in text or text.startswith(_END_OF_TEXT) else None
    line, lines, first = 0, list[str](), 1
    for line, content in enumerate([*text.split("\n"), mark or ""], 1):
        if content.strip() == (mark or ""):
            if part := "\n".join(lines).strip("\n"):
                yield Document(part, "", f"{path}:{first}")
            lines, first = [], line + 1
        else:
            first = first if lines else line
            lines.append(content)


def _rows(path: str, column: str) -> Iterator[Document]:
    for row in read_rows(path):
        if column not in row.values:
            has = ", ".join(map(str, list(row.values)[:12]))
            raise UserError(f"{row.source}: no column {column}; it has {has}; name yours in task.text.column")
        cell = row.values[column]
        split = split_of(row, SPLITS)
        if not isinstance(cell, str) and not is_flat(cell):
            raise UserError(f"{row.source}: column {column} is of type {type(cell).__name__}; give text or token ids")
        if cell:
            yield Document(cell if isinstance(cell, str) else tuple(cell), split, row.source)


def windows_of(
    documents: Iterable[TokenIds], window: int, stride: int | None = None
) -> Iterator[tuple[int, int, TokenIds, TokenIds]]:
    """Cut the token ids of documents into windows.

    Yields number of the document, place of the first token, context and scored tokens. A window begins `stride` tokens after the
    one before (None: `window`) and has up to `window`; the tokens that it shares with the one before are its context, one token
    at least. The last window of a document ends with it. A document of a single token has none.
    """
    stride = stride or window
    for number, ids in enumerate(documents):
        for start in range(0, max(len(ids) - 1, 0), stride):
            context = 1 if start == 0 else max(1, window - stride)
            part = ids[start : start + window]
            if len(part) > context:
                yield number, start, part[:context], part[context:]
            if start + window >= len(ids):
                break


class Corpus(NamedTuple):
    """Tokenised documents of general text."""

    documents: list[TokenIds]
    sources: list[str]
    """Origin of each document, as `file:row`."""
    splits: list[str]
    """Split that the row of each document names; all empty where none does."""
    sha256: str
    """Hash of the documents in order, before tokenisation."""
    notes: tuple[str, ...] = ()
    """What the user should know about the tokens of the documents, one line each."""


def read_corpus(task: TaskConfig, tokenizer: Any | None, vocab_size: int, positions: int | None) -> Corpus:
    """Read and tokenise the corpus of a task.

    positions: most that the model has; None where any number will do. Raises UserError naming file and row.
    """
    assert task.path is not None
    check_window(task.text, positions)
    documents = read_documents(task.path, task.text.column)
    rows = tokenize_documents(documents, tokenizer, task.special_tokens, vocab_size)
    texts = {document.source: document.text for document in documents if isinstance(document.text, str)}
    ids = {document.source: row for document, row in zip(documents, rows, strict=True) if document.source in texts}
    return Corpus(
        documents=rows,
        sources=[document.source for document in documents],
        splits=[document.split for document in documents],
        sha256=_sha256([document.text for document in documents]),
        notes=tuple(corpus_notes(task, texts, ids, len(documents), tokenizer)),
    )


def blank_samples(task: TaskConfig, tokenizer: Any | None, hf_config: Any) -> Corpus:
    """Lay out samples of a model whose weights are not there yet: as many documents as long as they can become.

    Raises UserError for a model without a start token.
    """
    text, start = task.text, start_token(tokenizer, hf_config)
    recipe = [text.generate, text.window, task.seed, start]
    return samples([(start,) * text.window] * text.generate)._replace(sha256=_sha256(recipe))


def samples(documents: Sequence[TokenIds]) -> Corpus:
    """Make a corpus of token ids that a model has written."""
    sources = [f"sample #{number}" for number in range(1, len(documents) + 1)]
    return Corpus(list(documents), sources, [""] * len(documents), _sha256(documents))


def start_token(tokenizer: Any | None, hf_config: Any) -> int:
    """Return the token that samples begin with. Raises UserError where the model has none."""
    for owner in (tokenizer, hf_config):
        for name in ("bos_token_id", "eos_token_id"):
            token = getattr(owner, name, None)
            if isinstance(token, int):
                return token
    raise UserError(
        "task.text.generate is set but the model has neither a start nor an end token; set task.path to a corpus"
    )


def windows_of_corpus(corpus: Corpus, text: TextConfig, subject: str) -> list[Example]:
    """Cut a corpus into windows. Raises UserError, naming the corpus as `subject`, where it has none."""
    found = [
        Example(
            id=index,
            clean=context,
            corrupted=context,
            answers=(scored,),
            wrong_answers=(),
            source=f"{corpus.sources[number]} from token {start}",
            document=number,
        )
        for index, (number, start, context, scored) in enumerate(windows_of(corpus.documents, text.window, text.stride))
    ]
    if not found:
        raise UserError(f"{subject}: no document has two tokens; set task.path to a corpus with text")
    return found


def check_window(text: TextConfig, positions: int | None) -> None:
    """Raises UserError for windows that are longer than the model has positions."""
    if positions is not None and text.window > positions:
        raise UserError(
            f"task.text.window is {text.window} but the model has {positions} positions; set it to {positions} or less"
        )


def tokenize_documents(
    documents: Sequence[Document], tokenizer: Any | None, special_tokens: bool, vocab_size: int
) -> list[TokenIds]:
    """Tokenise documents as they are, with the special tokens that the tokenizer adds, if asked; token ids stay as they are.

    Raises UserError for text without a tokenizer, and for ids that the model does not have.
    """
    texts = [document.text for document in documents if isinstance(document.text, str)]
    if texts and tokenizer is None:
        source = next(d.source for d in documents if isinstance(d.text, str))
        raise UserError(f"{source}: the row is text but the model has no tokenizer; write token ids instead")
    subject = f"{documents[0].source if documents else 'the corpus'}: the model's tokenizer cannot read the corpus"
    with explain_library_errors(subject, None, "reword it, or mend the tokenizer"):
        rows = iter(
            tokenizer(texts, add_special_tokens=special_tokens, return_attention_mask=False, verbose=False)["input_ids"]
            if texts and tokenizer is not None
            else ()
        )
    found = [tuple(next(rows)) if isinstance(document.text, str) else document.text for document in documents]
    for ids, document in zip(found, documents, strict=True):
        if ids and (max(ids) >= vocab_size or min(ids) < 0):
            wrong = next(token for token in ids if not 0 <= token < vocab_size)
            raise UserError(f"{document.source}: token id {wrong} is not in the model's vocabulary of {vocab_size}")
    return found


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
