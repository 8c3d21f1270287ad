"""Data set of a task: read or build the pairs, tokenise, check and divide them, before any weights are loaded."""

import hashlib
import json
import random
from collections.abc import Mapping
from typing import Any, NamedTuple

from bigcircuit.config.own_code import is_reference
from bigcircuit.config.schema import Config, TaskConfig
from bigcircuit.data.builders import BUILDERS, find_builder
from bigcircuit.data.notes import notes, with_leading_space
from bigcircuit.data.pair import Example, Pair
from bigcircuit.data.readers.read import pairs_of_rows, read_pairs
from bigcircuit.data.splits import split
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
    bad: tuple[str, ...] = ()
    """Problem of each pair that `task.bad_pairs: drop` left out."""
    unsolved: int = 0
    """Number of pairs left out because the full model gets them wrong."""
    notes: tuple[str, ...] = ()
    """What the user should know about the tokens of the pairs, one line each."""


def load_task(task: TaskConfig, tokenizer: Any | None, hf_config: Any) -> TaskData:
    """Read or build the pairs of a task, tokenise, check and divide them. Raises UserError naming file, row and remedy."""
    pairs = make_pairs(task, tokenizer)
    examples, bad = _examples(task, pairs, tokenizer, hf_config)
    return TaskData(
        splits=split(examples, pairs, task.split.model_dump(), task.seed),
        pairs=pairs,
        sha256=_sha256(pairs),
        tokens_sha256=_tokens_sha256(examples),
        bad=bad,
        notes=tuple(notes(task, pairs, examples, tokenizer)),
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
        pairs = make_pairs(task, tokenizer)
        examples, _ = _examples(task, pairs, tokenizer, hf_config)
        return AblationData(examples, _sha256(pairs), _tokens_sha256(examples))
    except UserError as error:
        message = str(error).replace("task.path", "ablation.data")  # the key to correct here
        raise UserError(f"ablation.data: {message}") from error


def _examples(
    task: TaskConfig, pairs: list[Pair], tokenizer: Any | None, hf_config: Any
) -> tuple[list[Example], tuple[str, ...]]:
    """Tokenise pairs. Returns the examples, and the problem of each pair that is left out."""
    limit = min(task.max_tokens, getattr(hf_config, "max_position_embeddings", None) or task.max_tokens)
    bad: list[str] | None = [] if task.bad_pairs == "drop" else None
    examples = tokenize_pairs(pairs, tokenizer, limit, task.special_tokens, hf_config.vocab_size, bad)
    if not examples:
        raise UserError(f"{task.path or task.name}: every pair is bad, the first because {(bad or ['?'])[0]}")
    for length in frequency_switches(hf_config):
        _check_one_side(examples, length)
    return examples, tuple(bad or ())


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


def make_pairs(task: TaskConfig, tokenizer: Any | None) -> list[Pair]:
    """Read the pairs of a file, or build them with words that fit the tokenizer. Raises UserError."""
    if task.name == "pairs":
        assert task.path is not None
        pairs = read_pairs(task.path, task.format, task.columns)
        return list(map(with_leading_space, pairs)) if task.leading_space == "add" else pairs
    builder = find_builder(task.name)
    if builder is None:
        raise UserError(f"task.name {task.name!r} is not a task; known: pairs, {', '.join(sorted(BUILDERS))}")
    if tokenizer is None and task.name in BUILDERS:
        raise UserError(
            f"task.name {task.name} needs a tokenizer, and the model has none; use a pair file with token ids"
        )
    return pairs_of_rows(task.name, builder(tokenizer, task.size, random.Random(task.seed)))
