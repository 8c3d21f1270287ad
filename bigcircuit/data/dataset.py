"""Data set of a task: read or build the pairs, tokenise, check and divide them, before any weights are loaded."""

import hashlib
import json
import random
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

from bigcircuit.config.chat import ChatConfig
from bigcircuit.config.own_code import calling, is_reference
from bigcircuit.config.schema import Config, TaskConfig
from bigcircuit.config.text import TEXT_TASK
from bigcircuit.data.builders import BUILDERS, LIST_BUILDERS, find_builder
from bigcircuit.data.builders.words import alignment_problem
from bigcircuit.data.chat import ChatRenderer, as_conversation
from bigcircuit.data.notes import notes, size_notes, with_leading_space
from bigcircuit.data.pair import Example, Pair
from bigcircuit.data.readers.read import pairs_of_rows, read_pairs
from bigcircuit.data.readers.rows import read_rows
from bigcircuit.data.splits import split, split_windows
from bigcircuit.data.text import Corpus, blank_samples, check_window, read_corpus, windows_of_corpus
from bigcircuit.data.tokenize import tokenize_pairs
from bigcircuit.errors import UserError
from bigcircuit.model.rotary import frequency_switches


class TaskData(NamedTuple):
    """Examples of each split, and what identifies the data."""

    splits: Mapping[str, list[Example]]
    """"train", "validation" and "test"; and "off_distribution", where templates are held out."""
    pairs: list[Pair]
    """The pairs before tokenisation; `Example.id` is an index into them."""
    sha256: str
    """Hash of all pairs in order."""
    tokens_sha256: str
    """Hash of the token ids of all examples in order: the same pairs have others under another tokenizer."""
    held_out_sha256: str = ""
    """Hash of the token ids of the test split in order, before pairs are left out for the model's sake."""
    bad: tuple[str, ...] = ()
    """Problem of each pair that `task.bad_pairs: drop` left out."""
    unsolved: int = 0
    """Number of pairs left out because the full model gets them wrong."""
    notes: tuple[str, ...] = ()
    """What the user should know about the tokens of the pairs or documents, one line each."""


def load_task(task: TaskConfig, tokenizer: Any | None, hf_config: Any) -> TaskData:
    """Read or build the pairs of a task, tokenise, check and divide them. Raises UserError naming file, row and remedy."""
    if task.name == TEXT_TASK:
        return _load_text(task, tokenizer, hf_config)
    pairs, examples, bad = _examples(task, tokenizer, hf_config)
    splits = split(examples, pairs, task.split.model_dump(), task.seed)
    return TaskData(
        splits=splits,
        pairs=pairs,
        sha256=_sha256(pairs),
        tokens_sha256=_tokens_sha256(examples),
        held_out_sha256=_tokens_sha256(splits["test"]),
        bad=bad,
        notes=(*size_notes(task, len(pairs)), *notes(task, pairs, examples, tokenizer)),
    )


def _load_text(task: TaskConfig, tokenizer: Any | None, hf_config: Any) -> TaskData:
    """Read a corpus, or lay out the samples that the model will write once its weights are there."""
    positions = getattr(hf_config, "max_position_embeddings", None)
    if task.text.generate:
        check_window(task.text, positions)
        return text_data(task, blank_samples(task, tokenizer, hf_config), hf_config)
    return text_data(task, read_corpus(task, tokenizer, hf_config.vocab_size, positions), hf_config)


def text_data(task: TaskConfig, corpus: Corpus, hf_config: Any) -> TaskData:
    """Cut a corpus into windows and divide them by document. Raises UserError."""
    examples = windows_of_corpus(corpus, task.text, task.path or TEXT_TASK)
    for length in frequency_switches(hf_config):
        _check_one_side(examples, length)
    splits = split_windows(examples, corpus.splits, task.split.model_dump(), task.seed)
    return TaskData(
        splits=splits,
        pairs=[
            Pair(clean=e.clean, corrupted=e.corrupted, answers=e.answers, wrong_answers=(), source=e.source)
            for e in examples
        ],
        sha256=corpus.sha256,
        tokens_sha256=_tokens_sha256(examples),
        held_out_sha256=_tokens_sha256(splits["test"]),
        notes=corpus.notes,
    )


class AblationData(NamedTuple):
    """Pairs over whose prompts ablation means are taken."""

    examples: list[Example]
    sha256: str
    """Hash of all pairs in order, as TaskData.sha256."""
    tokens_sha256: str
    """Hash of the token ids of all examples in order."""


def load_ablation_data(config: Config, tokenizer: Any | None, hf_config: Any) -> AblationData | None:
    """Load the pairs of the task builder or pair file that `ablation.data` names; None if it is not set. Raises UserError.

    Size, seed, special tokens, longest prompt and treatment of bad pairs are those of the task.
    """
    name = config.ablation.data
    if name is None:
        return None
    where = {"name": name, "path": None} if name in BUILDERS or is_reference(name) else {"name": "pairs", "path": name}
    task = config.task.model_copy(update={**where, "format": None, "columns": {}})
    try:
        pairs, examples, _ = _examples(task, tokenizer, hf_config)
        return AblationData(examples, _sha256(pairs), _tokens_sha256(examples))
    except UserError as error:
        message = str(error).replace("task.path", "ablation.data")  # the key to correct here
        raise UserError(f"ablation.data: {message}") from error


def _examples(
    task: TaskConfig, tokenizer: Any | None, hf_config: Any
) -> tuple[list[Pair], list[Example], tuple[str, ...]]:
    """Make and tokenise pairs. Returns pairs and examples, and the problem of each pair that is left out."""
    limit = min(task.max_tokens, getattr(hf_config, "max_position_embeddings", None) or task.max_tokens)
    bad: list[str] | None = [] if task.bad_pairs == "drop" else None
    pairs = make_pairs(task, tokenizer, bad)
    examples = tokenize_pairs(
        pairs, tokenizer, limit, task.special_tokens, hf_config.vocab_size, bad, task.answer_tokens
    )
    if not examples:
        raise UserError(f"{task.path or task.name}: every pair is bad, the first because {(bad or ['?'])[0]}")
    for length in frequency_switches(hf_config):
        _check_one_side(examples, length)
    return pairs, examples, tuple(bad or ())


def _check_one_side(examples: list[Example], length: int) -> None:
    """Raise UserError if passes may have rows on both sides of a length above which the model computes with other frequencies.

    One longer row would change the numbers of all shorter ones in its pass.
    """
    rows = {e.source: [len(e.clean) + len(c) - 1 for c in (*e.answers, *e.wrong_answers)] for e in examples}
    short = next((source for source, tokens in rows.items() if min(tokens) <= length), None)
    long = next((source for source, tokens in rows.items() if max(tokens) > length), None)
    if short and long:
        raise UserError(
            f"{long}: {max(rows[long])} tokens with the answer, and {short} has {min(rows[short])}; above {length} tokens this "
            "model (longrope) has other position frequencies, for all pairs of a pass: use pairs of one side, or leave out the "
            f"longer ones by task.max_tokens {length} and task.bad_pairs drop"
        )


def _sha256(pairs: list[Pair]) -> str:
    return hashlib.sha256(json.dumps([(*pair[:5], "") for pair in pairs]).encode()).hexdigest()


def _tokens_sha256(examples: list[Example]) -> str:
    return hashlib.sha256(json.dumps([example[:5] for example in examples]).encode()).hexdigest()


def make_pairs(task: TaskConfig, tokenizer: Any | None, left_out: list[str] | None = None) -> list[Pair]:
    """Read the pairs of a file, or build them with words that fit the tokenizer, and render those that are conversations.

    left_out: list to which the problem of each pair that cannot be rendered is appended; None to raise the first. Raises UserError.
    """
    if task.name == TEXT_TASK:
        raise UserError("task.name is text, which has no pairs; `bigcircuit check` shows its windows")
    if task.name == "pairs":
        assert task.path is not None
        pairs = read_pairs(task.path, task.format, task.columns)
    elif task.name in LIST_BUILDERS:
        return _from_list(task, tokenizer)
    else:
        pairs = _built(task, tokenizer)
    if task.chat.text == "user":
        pairs = list(map(as_conversation, pairs))
        if not all(pair.messages for pair in pairs):
            raise UserError(f"{task.path}: task.chat.text is user, but prompts are token ids; write them as text")
    if task.chat.answers or task.chat.wrong_answers:
        raise UserError(
            f"task.chat.answers and task.chat.wrong_answers are for tasks built from a list ({', '.join(LIST_BUILDERS)}), not for "
            f"{task.name}; leave them out"
        )
    if any(pair.messages for pair in pairs):
        pairs = list(_rendered(pairs, ChatRenderer(tokenizer, task.chat, task.path or task.name), left_out))
    else:
        _check_chat_is_used(task)
    return list(map(with_leading_space, pairs)) if task.leading_space == "add" and task.name == "pairs" else pairs


def _built(task: TaskConfig, tokenizer: Any | None) -> list[Pair]:
    """Build the pairs of a task by its builder. Raises UserError."""
    if task.path:
        raise UserError(f"task.path is {task.path} but task.name is {task.name}; set task.name to pairs to read it")
    builder = find_builder(task.name)
    if builder is None:
        known = ", ".join(sorted({*BUILDERS, *LIST_BUILDERS}))
        raise UserError(f"task.name {task.name!r} is not a task; known: pairs, text, {known}")
    if tokenizer is None and task.name in BUILDERS:
        raise UserError(
            f"task.name {task.name} needs a tokenizer, and the model has none; use a pair file with token ids"
        )
    with calling(f"task.name {task.name}") if task.name not in BUILDERS else nullcontext():
        return pairs_of_rows(task.name, builder(tokenizer, task.size, random.Random(task.seed)))


def _rendered(pairs: Iterable[Pair], renderer: ChatRenderer, left_out: list[str] | None) -> Iterator[Pair]:
    for pair in pairs:
        try:
            yield renderer.render(pair) if pair.messages else pair
        except UserError as error:
            if left_out is None:
                raise
            left_out.append(str(error))


def _check_chat_is_used(task: TaskConfig) -> None:
    """Raise UserError for settings of conversations that no pair has a use for."""
    unused = [name for name, value in ChatConfig() if name != "text" and getattr(task.chat, name) != value]
    if unused:
        raise UserError(
            f"task.chat.{unused[0]} is set, but no prompt of {task.path or task.name} is a conversation; set task.chat.text to "
            "user to make each prompt the message of a user"
        )


def _from_list(task: TaskConfig, tokenizer: Any | None) -> list[Pair]:
    """Build up to `task.size` pairs of conversations that fit the tokenizer from the list at `task.path`. Raises UserError."""
    columns, draw_pairs = LIST_BUILDERS[task.name]
    if not task.path:
        raise UserError(
            f"task.name {task.name} is built from a list; set task.path to a file with the columns {', '.join(columns)}"
        )
    renderer, rows = ChatRenderer(tokenizer, task.chat, task.path), []
    for row in read_rows(task.path):
        values = {name: row.values.get(task.columns.get(name, name)) for name in columns}
        empty = next((name for name, value in values.items() if value is None or not str(value).strip()), None)
        if empty is not None:
            raise UserError(
                f"{row.source}: nothing in column {task.columns.get(empty, empty)}; a list for {task.name} has the columns "
                f"{', '.join(columns)}"
            )
        rows.append(values)
    pairs: list[Pair] = []
    problem, seen = "", set()
    try:
        for drawn in draw_pairs(rows, tokenizer, random.Random(task.seed)):
            if len(pairs) == task.size:
                break
            pair = renderer.render(drawn._replace(source=f"{task.name} #{len(pairs) + 1}"))
            pair = pair._replace(
                answers=task.chat.answers or pair.answers, wrong_answers=task.chat.wrong_answers or pair.wrong_answers
            )
            found = alignment_problem(pair, tokenizer, distinct_first=False)
            problem = problem or found
            if not found and pair.clean not in seen:
                seen.add(pair.clean)
                pairs.append(pair)
    except ValueError as error:
        raise UserError(f"{task.path}: {error}") from error
    if not pairs:
        why = problem or "no two requests have as many tokens"
        raise UserError(f"{task.path}: no pair of {task.name} can be made of the list ({why}); give more rows")
    return pairs
