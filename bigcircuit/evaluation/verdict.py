"""Result of an evaluation in sentences, with the evidence against the circuit."""

from dataclasses import replace

from bigcircuit.evaluation.checks import checks
from bigcircuit.metrics.numbers import terminal_score_text
from bigcircuit.metrics.registry import SCORES, Scores, is_on_text, match_of, preference_of, recovered_of, unit_of
from bigcircuit.model.granularity import NODE_NAMES
from bigcircuit.results.evaluation import EvaluatedCircuit, Evaluation, UnderAblation


def with_verdict(result: Evaluation) -> Evaluation:
    """Add the sentences and the four answers about the first circuit to an evaluation."""
    circuit = result.circuits[0]
    (ablation, under), *others = circuit.ablations.items()
    sentences = [
        _which(result),
        _no_statement(circuit, under),
        _main(result, circuit, ablation, under),
        _chance(under),
        _unnecessary(under),
        _interference(under),
        _off_distribution(under),
        *(_further(name, other) for name, other in others),
        _controls(result, circuit, ablation),
    ]
    return replace(result, verdict=" ".join(filter(None, sentences)), checks=checks(circuit))


def _which(result: Evaluation) -> str:
    """Name the circuit that the sentences are about, where several were evaluated."""
    own = [one.name for one in result.circuits if not one.control]
    return f"Of the first of {len(own)} circuits, {own[0]}:" if len(own) > 1 else ""


def _kl(scores: Scores) -> str:
    return f"KL {terminal_score_text(scores['kl'].mean)}"


def _match(scores: Scores) -> str:
    return format(scores[match_of(scores)].mean, ".0%")


def _no_worse(under: UnderAblation) -> bool:
    """Whether the complement is at least as close to the full model as the circuit."""
    return under.complement["kl"].mean <= under.circuit["kl"].mean


def _no_statement(circuit: EvaluatedCircuit, under: UnderAblation) -> str:
    """Name reasons why the scores say little."""
    sentences = [] if circuit.kept["total"] else ["This circuit keeps nothing."]
    recovered = under.circuit[recovered_of(under.circuit)].mean
    if recovered != recovered:
        what = SCORES[preference_of(under.circuit)].long
        sentences.append(f"Closing everything changes no mean {what}, so no share of it can be recovered.")
    return " ".join(sentences)


def _main(result: Evaluation, circuit: EvaluatedCircuit, ablation: str, under: UnderAblation) -> str:
    """Describe size and faithfulness of the circuit and faithfulness of its complement, under the first ablation."""
    kl = under.circuit["kl"]
    low, high = terminal_score_text(kl.low), terminal_score_text(kl.high)
    worst = "document" if is_on_text(under.circuit) else "pair"
    interval = f"95% interval {low} to {high}, worst {worst} {kl.max:.2f}"
    return (
        f"With {ablation.replace('_', ' ')} ablation, {circuit.kept['total']:,} of {result.nodes['total']:,} neurons "
        f"({circuit.kept['head']} of {result.nodes['head']} heads) predict what the full model predicts on "
        f"{_match(under.circuit)} of the held-out {unit_of(under.circuit)} ({_kl(under.circuit)} nats, {interval}); the rest "
        f"without them on {_match(under.complement)} ({_kl(under.complement)}"
        f"{', no worse than the circuit' if _no_worse(under) else ''})."
    )


def _chance(under: UnderAblation) -> str:
    """Compare with random circuits of the same shape."""
    if under.random is None:
        return ""
    if not under.random.distinct:
        return "There is no other circuit of this shape."
    kl = under.random.scores["kl"]
    found = "None" if not kl.better else str(kl.better)
    verb = "is" if kl.better < 2 else "are"
    return (
        f"{found} of {under.random.draws} random circuits of the same shape {verb} as close (the best: KL "
        f"{terminal_score_text(kl.min)}; p = {kl.p:.2g})."
    )


def _unnecessary(under: UnderAblation) -> str:
    """Count the nodes that minimality does not show to be needed."""
    if not under.minimality:
        return ""
    spare = [
        f"{found.unnecessary} of {found.kept} {NODE_NAMES[name]}"
        for name, found in under.minimality.items()
        if found.unnecessary
    ]
    grouped = ", or group of nodes," if any(found.group > 1 for found in under.minimality.values()) else ""
    return f"Not shown to be needed: {', '.join(spare)}." if spare else f"Every kept node{grouped} is needed."


def _interference(under: UnderAblation) -> str:
    """Name the share of the complement that, when open, makes the circuit clearly worse; empty if there is none."""
    alone = under.circuit["kl"].high
    worse = [point for point in under.partial if 0 < point.fraction < 1 and point.kl > alone]
    if not worse:
        return ""
    worst = max(worse, key=lambda point: point.kl)
    return f"It works best when the rest is off: with {worst.fraction:.0%} of the rest open KL is {worst.kl:.3f}."


def _off_distribution(under: UnderAblation) -> str:
    """Describe circuit and complement on held-out templates."""
    off = under.off_distribution
    if off is None:
        return ""
    inside, without = off.circuit["kl"].mean, off.complement["kl"].mean
    return f"On {off.pairs} pairs of templates held out its KL is {inside:.3f}, that of the rest {without:.3f}."


def _further(ablation: str, under: UnderAblation) -> str:
    """Describe the circuit under a further ablation, and what is as close there although it should not be."""
    as_good = [f"the rest without it ({_kl(under.complement)})"] if _no_worse(under) else []
    if under.random is not None and under.random.distinct and (better := under.random.scores["kl"].better):
        as_good.append(f"{better} of {under.random.draws} random circuits")
    text = (
        f"With {ablation.replace('_', ' ')} ablation its KL is {terminal_score_text(under.circuit['kl'].mean)} and it predicts "
        f"what the full model predicts on {_match(under.circuit)}"
    )
    return f"{text}; as close: {' and '.join(as_good)}." if as_good else f"{text}."


def _controls(result: Evaluation, circuit: EvaluatedCircuit, ablation: str) -> str:
    """Give the KL of all controls of the same task."""
    found = [one for one in result.circuits if one.control and one.task == circuit.task and ablation in one.ablations]
    return " ".join(
        f"The control {one.name} reaches KL {one.ablations[ablation].circuit['kl'].mean:.3f}." for one in found
    )
