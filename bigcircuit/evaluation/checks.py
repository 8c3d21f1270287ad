"""The result of an evaluation as four answers: faithful, complete, better than random, minimal."""

from collections.abc import Callable
from math import isnan

from bigcircuit.metrics.numbers import terminal_score_text
from bigcircuit.metrics.registry import SCORES, match_of, preference_of, recovered_of, unit_of
from bigcircuit.model.granularity import NODE_NAMES
from bigcircuit.results.evaluation import Check, EvaluatedCircuit, UnderAblation

_FAITHFUL, _INCOMPLETE, _CHANCE, _SPARE = 0.9, 0.5, 0.05, 0.1
"""Exact match from which a circuit is faithful; share of the logit difference that the rest may recover; p value; share of the
kept nodes that may be unneeded for a circuit that is nearly minimal."""


def checks(circuit: EvaluatedCircuit) -> list[Check]:
    """Answer four questions about a circuit under its first ablation, each with the numbers that decide it."""
    under = next(iter(circuit.ablations.values()))
    return [Check(name, *answer(under)) for name, answer in _QUESTIONS.items()]


def _between(value: float, end: float, holds: Callable[[float], bool]) -> str:
    """`yes` where the bad end of the interval holds too, `partly` where only the mean does, else `no`."""
    if isnan(value):
        return "not measured"
    return "yes" if holds(end) else "partly" if holds(value) else "no"


def _faithful(under: UnderAblation) -> tuple[str, str]:
    match, kl = under.circuit[match_of(under.circuit)], under.circuit["kl"]
    unit = unit_of(under.circuit)
    text = (
        f"predicts what the full model predicts on {match.mean:.0%} of the {unit} ({match.low:.0%} to {match.high:.0%})"
    )
    answer = _between(match.mean, match.low, lambda share: share >= _FAITHFUL)
    return answer, f"{text}, KL {terminal_score_text(kl.mean)} nats; asked: {_FAITHFUL:.0%}"


def _complete(under: UnderAblation) -> tuple[str, str]:
    rest = under.complement[recovered_of(under.complement)]
    what = SCORES[preference_of(under.complement)].long
    answer = _between(rest.mean, rest.high, lambda share: share < _INCOMPLETE)
    if isnan(rest.mean):
        return answer, f"closing everything changes no mean {what}"
    return answer, (
        f"the rest without it recovers {_share(rest.mean)} of the {what} ({_share(rest.low)} to {_share(rest.high)}); "
        f"asked: under {_share(_INCOMPLETE)}"
    )


def _share(value: float) -> str:
    return format(round(value, 2) + 0.0, ".0%")  # without the sign of a zero


def _better_than_random(under: UnderAblation) -> tuple[str, str]:
    if under.random is None or not under.random.distinct:
        return (
            "not measured",
            "no random circuits were drawn" if under.random is None else "no other circuit has this shape",
        )
    kl = under.random.scores["kl"]
    text = f"{kl.better} of {under.random.draws} random circuits of the same shape are as close, p = {kl.p:.2g}"
    least = 1 / (under.random.draws + 1)
    if not kl.better and least > _CHANCE:  # so few draws cannot show more
        return "partly", f"{text}; {round(1 / _CHANCE) - 1} draws could show p = {_CHANCE:g}"
    return ("yes" if kl.p <= _CHANCE else "no"), f"{text}; asked: at most {_CHANCE:g}"


def _minimal(under: UnderAblation) -> tuple[str, str]:
    if not under.minimality:
        return "not measured", "no node was closed by itself"
    kept = sum(found.kept for found in under.minimality.values())
    spare = {name: found for name, found in under.minimality.items() if found.unnecessary}
    if not spare:
        return "yes", "closing any kept node makes it worse"
    share = sum(found.unnecessary for found in spare.values()) / kept
    listed = ", ".join(f"{found.unnecessary} of {found.kept} {NODE_NAMES[name]}" for name, found in spare.items())
    return ("partly" if share <= _SPARE else "no"), f"not shown to be needed: {listed}"


_QUESTIONS: dict[str, Callable[[UnderAblation], tuple[str, str]]] = {
    "faithful": _faithful,
    "complete": _complete,
    "better than random": _better_than_random,
    "minimal": _minimal,
}
"""Question -> function that answers it, with the evidence."""
