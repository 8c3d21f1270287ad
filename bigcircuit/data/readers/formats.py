"""Table of the formats of pair files: the columns that identify a format, and the function that turns a row into a pair.

The function takes the cells of a row and returns a Pair, or raises ValueError with what is wrong with the row. One more format
is one more entry of FORMATS. A `split` column is read in every format.
"""

from collections.abc import Callable
from fnmatch import filter as matching
from typing import NamedTuple

from bigcircuit.data.pair import Pair
from bigcircuit.data.readers.cells import (
    Values,
    answers,
    are_ids,
    as_written,
    conversation,
    is_conversation,
    is_flat,
    nested,
    numbers_as_text,
    prompt,
    text,
    token_id,
    two_digits,
)


class PairFormat(NamedTuple):
    """Format of pair files."""

    columns: tuple[str, ...]
    """Columns that a file of this format has; `*` matches any part of a name."""
    convert: Callable[[Values], Pair]
    """Turns the cells of a row into a pair."""


def canonical(values: Values) -> Pair:
    """Read a row of this project's own format: prompts are text or token ids, answers one or several of either.

    After a text prompt numbers are text, but for lists of lists: [5] is the answer 5, and [[5]] a token id. Prompts that are lists
    of messages are conversations.
    """
    cells = {name: values.get(name) for name in ("clean", "corrupted", "answers", "wrong_answers")}
    if is_conversation(cells["clean"]) or is_conversation(cells["corrupted"]):
        return _of_conversations(cells, "clean", "corrupted")
    if not all(map(are_ids, cells.values())):  # in a CSV file [1, 2] may be a prompt of text or of token ids
        cells |= {name: as_written(cells[name]) for name in ("clean", "corrupted")}
    numbers = isinstance(cells["clean"], str) and (is_flat(cells["answers"]) or is_flat(cells["wrong_answers"]))
    if numbers:
        cells |= {name: numbers_as_text(cells[name]) for name in ("answers", "wrong_answers")}
    return Pair(
        clean=prompt(cells, "clean"),
        corrupted=prompt(cells, "corrupted"),
        answers=answers(cells, "answers"),
        wrong_answers=answers(cells, "wrong_answers"),
        numbers=numbers,
    )


def auto_circuit(values: Values) -> Pair:
    """Read a row of auto-circuit: as `canonical`, but the corrupted prompt is in column `corrupt`."""
    return canonical({**values, "corrupted": values.get("corrupt")})


def chat(values: Values) -> Pair:
    """Read a row of conversations: the clean one is in `messages`, the corrupted one in `corrupted_messages`."""
    return _of_conversations(values, "messages", "corrupted_messages")


def _of_conversations(values: Values, clean: str, corrupted: str) -> Pair:
    """Read a row of conversations in these columns; answers, also numbers, are text."""
    messages = conversation(values, clean), conversation(values, corrupted)
    roles = [", ".join(message.role for message in one) for one in messages]
    if roles[0] != roles[1]:
        raise ValueError(f"{clean} has the roles {roles[0]} and {corrupted} {roles[1]}; give both the same")
    cells = {name: numbers_as_text(values.get(name)) for name in ("answers", "wrong_answers")}
    return Pair(
        clean="",
        corrupted="",
        answers=answers(cells, "answers"),
        wrong_answers=answers(cells, "wrong_answers"),
        messages=messages,
    )


def eap_ids(values: Values) -> Pair:
    """Read a row of EAP-IG or MIB whose answers are ids of single tokens of one tokenizer."""
    right, wrong = token_id(values, "correct_idx"), token_id(values, "incorrect_idx")
    return Pair(
        clean=text(values, "clean"), corrupted=text(values, "corrupted"), answers=((right,),), wrong_answers=((wrong,),)
    )


def eap_greater_than(values: Values) -> Pair:
    """Read a row of EAP-IG or MIB greater-than: the answer continues the year directly and must exceed the two digits `label`."""
    later, others = _years(two_digits(values, "label"))
    return Pair(clean=text(values, "clean"), corrupted=text(values, "corrupted"), answers=later, wrong_answers=others)


def mib(values: Values) -> Pair:
    """Read a row of MIB's data sets on the hub: the corrupted prompt is that of a counterfactual.

    Of several counterfactuals MIB's own default is used; task.columns.corrupted=<name>_counterfactual chooses another. IOI has
    its names in `metadata`. Multiple choice has `choices.label`; the wrong answer is the label that the counterfactual makes
    right, or all other labels if that label is also the right answer.
    """
    other = nested(values, _counterfactual(values))
    clean, corrupted = text(values, "prompt"), text(other, "prompt")
    names = values.get("metadata") or {}
    if "indirect_object" in names and "subject" in names:
        right, wrong = text(names, "indirect_object"), [text(names, "subject")]
    else:
        labels, key = _choices(values)
        right = labels[key]
        labels, key = _choices(other) if other.get("choices") else (labels, key)
        wrong = [labels[key]] if labels[key] != right else [label for label in labels if label != right]
    return Pair(
        clean=clean,
        corrupted=corrupted,
        answers=(_word_after(clean, right),),
        wrong_answers=tuple(_word_after(clean, word) for word in wrong),
    )


def edge_pruning_custom(values: Values) -> Pair:
    """Read a row of Edge-Pruning: a prompt ends where its `<predict>target</predict>` begins.

    The target of the corrupted prompt is the wrong answer. A space before `<predict>` becomes part of the answer, because
    tokenizers put spaces in front of words; text after `</predict>` is not used.
    """
    (clean, right), (corrupted, wrong) = _predicted(values, "clean"), _predicted(values, "corrupted")
    return Pair(clean=clean, corrupted=corrupted, answers=(right,), wrong_answers=(wrong,))


def edge_pruning_ioi(values: Values) -> Pair:
    """Read a row of Edge-Pruning IOI: whole sentences that end with a name; both prompts are cut before their last word.

    The right answer is `a`, the wrong answer `b`, the names of the clean sentence. The corrupted sentence is about other people
    and ends with another name, which is not used.
    """
    right = text(values, "a")
    clean, _, last = text(values, "ioi_sentences").rpartition(" ")
    if last != right:
        raise ValueError(f"ioi_sentences must end with a, {right!r:.60}, but ends with {last!r:.60}")
    corrupted = text(values, "corr_ioi_sentences").rpartition(" ")[0]
    return Pair(clean=clean, corrupted=corrupted, answers=(" " + right,), wrong_answers=(" " + text(values, "b"),))


def edge_pruning_greater_than(values: Values) -> Pair:
    """Read a row of Edge-Pruning greater-than: the answer continues the year directly and must exceed the clean `digits`."""
    later, others = _years(two_digits(values, "digits"))
    return Pair(
        clean=text(values, "prefix"), corrupted=text(values, "corr_prefix"), answers=later, wrong_answers=others
    )


def edge_pruning_pronoun(values: Values) -> Pair:
    """Read a row of Edge-Pruning gendered pronoun: the corrupted prompt's pronoun is the wrong answer."""
    right, wrong = text(values, "pronoun"), text(values, "corr_pronoun")
    return Pair(
        clean=text(values, "prefix"),
        corrupted=text(values, "corr_prefix"),
        answers=(" " + right,),
        wrong_answers=(" " + wrong,),
    )


FORMATS: dict[str, PairFormat] = {
    "pairs": PairFormat(("clean", "corrupted", "answers", "wrong_answers"), canonical),
    "auto-circuit": PairFormat(("clean", "corrupt", "answers", "wrong_answers"), auto_circuit),
    "chat": PairFormat(("messages", "corrupted_messages", "answers", "wrong_answers"), chat),
    "eap-ig": PairFormat(("clean", "corrupted", "correct_idx", "incorrect_idx"), eap_ids),
    "eap-ig-greater-than": PairFormat(("clean", "corrupted", "label"), eap_greater_than),
    "mib": PairFormat(("prompt", "*_counterfactual"), mib),
    "edge-pruning": PairFormat(("clean", "corrupted"), edge_pruning_custom),
    "edge-pruning-ioi": PairFormat(("ioi_sentences", "corr_ioi_sentences", "a", "b"), edge_pruning_ioi),
    "edge-pruning-greater-than": PairFormat(("prefix", "corr_prefix", "digits"), edge_pruning_greater_than),
    "edge-pruning-pronoun": PairFormat(("prefix", "corr_prefix", "pronoun", "corr_pronoun"), edge_pruning_pronoun),
}
"""Name of a format, as in `task.format` -> its entry. The first format whose columns are all in a file is chosen, so a format
whose columns are a subset of another's comes after it."""

_MIB_DEFAULTS = ("s2_io_flip_counterfactual", "symbol_counterfactual")


def _years(year: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the two-digit texts of the later years, and those of the year itself and the earlier years."""
    numbers = tuple(f"{number:02d}" for number in range(100))
    return numbers[year + 1 :], numbers[: year + 1]


def _predicted(values: Values, column: str) -> tuple[str, str]:
    """Return the prompt before `<predict>`, and the target."""
    whole = text(values, column)
    before, opened, rest = whole.partition("<predict>")
    target, closed, _ = rest.partition("</predict>")
    if not (opened and closed and target) or "<predict>" in rest:
        raise ValueError(f"{column} must hold <predict>target</predict> once; mark the target, or give answers columns")
    space = " " if before.endswith(" ") else ""
    return before.removesuffix(" "), space + target


def _counterfactual(values: Values) -> str:
    """Return the name of the column with the counterfactual to use."""
    if "corrupted" in values:
        return "corrupted"
    there = [name for name in matching(values, "*_counterfactual") if values[name] is not None]
    chosen = next((name for name in _MIB_DEFAULTS if name in there), there[0] if len(there) == 1 else None)
    if chosen is None:
        raise ValueError(f"{len(there)} counterfactuals ({', '.join(there)}); name one with task.columns.corrupted")
    return chosen


def _choices(values: Values) -> tuple[list[str], int]:
    """Return the labels of a multiple choice, and the index of the right label."""
    labels = nested(values, "choices").get("label")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"choices.label must be a list of texts, not {labels!r:.60}")
    key = token_id(values, "answerKey")
    if not 0 <= key < len(labels):
        raise ValueError(f"answerKey is {key} but there are {len(labels)} choices")
    return labels, key


def _word_after(before: str, word: str) -> str:
    """Return the word with a space in front, unless the word begins or the prompt ends with a space."""
    return word if word[:1].isspace() or before[-1:].isspace() else " " + word
