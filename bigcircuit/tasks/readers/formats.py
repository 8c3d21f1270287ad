"""The shapes of pair files, as a table: which columns tell a format, and how one of its rows becomes a pair.

A converter takes the values of a row and returns a Pair, or raises ValueError saying what is wrong with the row. One more
format is one more entry.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from bigcircuit.tasks.pair import Pair, Text

Values = Mapping[str, Any]


class Format(NamedTuple):
    """How to know a format and read its rows."""

    columns: tuple[str, ...]
    """All must be present; the first format of the table whose columns are is chosen."""
    convert: Callable[[Values], Pair]


def _text(values: Values, column: str) -> str:
    value = values[column]
    if not isinstance(value, str):
        raise ValueError(f"{column} must be text, not {value!r:.60}")
    return value


def _prompt(values: Values, column: str) -> Text:
    """Text, or a list of token ids."""
    value = values[column]
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(_is_id(item) for item in value):
        return tuple(value)
    raise ValueError(f"{column} must be text or a list of token ids, not {value!r:.60}")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _answers(values: Values, column: str) -> tuple[Text, ...]:
    """One answer or a list of them; a flat list of numbers is one answer of several token ids."""
    value = values[column]
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and value:
        if all(_is_id(item) for item in value):
            return (tuple(value),)
        if all(isinstance(item, str) for item in value):
            return tuple(value)
        if all(isinstance(item, list) and item and all(map(_is_id, item)) for item in value):
            return tuple(map(tuple, value))
    raise ValueError(
        f"{column} must be text, a list of texts or a list of token ids, and not empty; it is {value!r:.60}"
    )


def canonical(values: Values) -> Pair:
    """`clean, corrupted, answers, wrong_answers`, optionally `split`."""
    return Pair(
        _prompt(values, "clean"),
        _prompt(values, "corrupted"),
        _answers(values, "answers"),
        _answers(values, "wrong_answers"),
        values.get("split") or "",
    )


def eap_ids(values: Values) -> Pair:
    """EAP-IG and MIB: the answers are ids of single tokens after a text."""
    answers = []
    for column in ("correct_idx", "incorrect_idx"):
        try:
            answers.append((int(values[column]),))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{column} must be a token id, not {values[column]!r:.60}") from error
    return Pair(_text(values, "clean"), _text(values, "corrupted"), (answers[0],), (answers[1],))


def _years(label: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Two-digit continuations above the label, and the label with all below it."""
    if not re.fullmatch(r"\d{1,2}", str(label)):
        raise ValueError(f"the year must be two digits, not {label!r:.60}")
    year = int(label)
    if year == 99:
        raise ValueError("the year is 99 and nothing is greater; drop the row")
    numbers = [f"{n:02d}" for n in range(100)]
    return tuple(numbers[year + 1 :]), tuple(numbers[: year + 1])


def eap_greater_than(values: Values) -> Pair:
    """EAP-IG and MIB greater-than: `label` holds the two digits that the answer must exceed."""
    return Pair(_text(values, "clean"), _text(values, "corrupted"), *_years(values["label"]))


def mib(values: Values) -> Pair:
    """MIB on the hub: a prompt, its first counterfactual, and multiple-choice labels or the IOI names."""
    column = next((name for name in values if name.endswith("_counterfactual")), None)
    if column is None or not isinstance(values[column], Mapping):
        raise ValueError("no <name>_counterfactual column with a prompt; choose one with task.columns")
    choices, metadata = values.get("choices"), values.get("metadata") or {}
    if choices and values.get("answerKey") is not None:
        labels = list(choices["label"])
        right = labels[int(values["answerKey"])]
        answers, wrong = (f" {right}",), tuple(f" {label}" for label in labels if label != right)
    elif "indirect_object" in metadata and "subject" in metadata:
        answers, wrong = (f" {metadata['indirect_object']}",), (f" {metadata['subject']}",)
    else:
        raise ValueError("neither choices with answerKey nor metadata with indirect_object and subject")
    return Pair(_text(values, "prompt"), _text(values[column], "prompt"), answers, wrong)


def auto_circuit(values: Values) -> Pair:
    """auto-circuit: `clean`, `corrupt`, and lists of answers."""
    return Pair(
        _prompt(values, "clean"),
        _prompt(values, "corrupt"),
        _answers(values, "answers"),
        _answers(values, "wrong_answers"),
    )


_PREDICT = re.compile(r"^(.*)<predict>(.*)</predict>.*$", re.DOTALL)


def edge_pruning_custom(values: Values) -> Pair:
    """Edge-Pruning: the target of either prompt stands inside it; the corrupted one's target is the wrong answer.

    White space before `<predict>` belongs to the answer, because that is where tokenizers put it.
    """
    parts = {}
    for column in ("clean", "corrupted"):
        match = _PREDICT.match(_text(values, column))
        if match is None:
            raise ValueError(f"{column} has no <predict>...</predict>")
        before, target = match.groups()
        parts[column] = before.rstrip(), before[len(before.rstrip()) :] + target
    (clean, right), (corrupted, wrong) = parts["clean"], parts["corrupted"]
    return Pair(clean, corrupted, (right,), (wrong,), values.get("split") or "")


def edge_pruning_ioi(values: Values) -> Pair:
    """Edge-Pruning IOI: sentences that end with the receiver.

    Both prompts are cut before their last word. Right is name `a`, wrong is name `b` of the clean sentence; the corrupted
    sentence is about other people, so its own last name is not used.
    """
    cut = [_text(values, column).rsplit(" ", 1)[0] for column in ("ioi_sentences", "corr_ioi_sentences")]
    return Pair(cut[0], cut[1], (" " + _text(values, "a"),), (" " + _text(values, "b"),))


def edge_pruning_greater_than(values: Values) -> Pair:
    """Edge-Pruning greater-than: the answer must exceed `digits` of the clean prompt."""
    return Pair(_text(values, "prefix"), _text(values, "corr_prefix"), *_years(values["digits"]))


def edge_pruning_pronoun(values: Values) -> Pair:
    """Edge-Pruning gendered pronoun: the corrupted prompt's pronoun is the wrong answer."""
    right, wrong = _text(values, "pronoun"), _text(values, "corr_pronoun")
    return Pair(_text(values, "prefix"), _text(values, "corr_prefix"), (f" {right}",), (f" {wrong}",))


FORMATS: dict[str, Format] = {
    "edge-pruning-ioi": Format(("ioi_sentences", "corr_ioi_sentences", "a", "b"), edge_pruning_ioi),
    "edge-pruning-greater-than": Format(("prefix", "corr_prefix", "digits"), edge_pruning_greater_than),
    "edge-pruning-pronoun": Format(("prefix", "corr_prefix", "pronoun", "corr_pronoun"), edge_pruning_pronoun),
    "pairs": Format(("clean", "corrupted", "answers", "wrong_answers"), canonical),
    "auto-circuit": Format(("clean", "corrupt", "answers", "wrong_answers"), auto_circuit),
    "eap-ig": Format(("clean", "corrupted", "correct_idx", "incorrect_idx"), eap_ids),
    "eap-ig-greater-than": Format(("clean", "corrupted", "label"), eap_greater_than),
    "mib": Format(("prompt",), mib),
    "edge-pruning": Format(("clean", "corrupted"), edge_pruning_custom),
}
"""In the order in which they are tried: those with fewer or commoner columns last."""
