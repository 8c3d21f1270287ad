"""What a person sees of an evaluation: tables, and the result in words."""

from collections.abc import Sequence
from dataclasses import replace

from rich import box
from rich.table import Table

from bigcircuit.metrics.registry import SCORES, Score, Scores
from bigcircuit.results.evaluation import Drawn, EvaluatedCircuit, Evaluation, Task, UnderAblation
from bigcircuit.runtime.progress import ProgressDisplay

_NARROW = ("kl", "logit_difference", "recovered", "exact_match")
"""Scores that fit into 80 columns."""
_ALL_SCORES, _ALL_INTERVALS = 100, 190
"""Columns of the terminal from which all scores are shown, and all with their intervals; KL always has its own."""

_CAPTION = "[] 95% interval over pairs; of random circuits of the same shape, the lowest and the highest"


def show_evaluation(result: Evaluation, progress: ProgressDisplay) -> None:
    """One table an ablation, what is minimal and what else was asked for, and the verdict."""
    for ablation in _ablations(result):
        progress.print_table(_ScoreTable(result, ablation, progress.console.width).shown)
        if result.cross.get(ablation):
            progress.print_table(_cross(result, ablation))
        if result.curves.get(ablation):
            progress.print_table(_curves(result, ablation))
    for circuit in result.circuits:
        for ablation, under in circuit.ablations.items():
            if under.minimality:
                progress.print_table(_minimality(circuit, ablation, under))
    progress.print_line(result.verdict)


def _ablations(result: Evaluation) -> list[str]:
    return list(dict.fromkeys(name for circuit in result.circuits for name in circuit.ablations))


class _ScoreTable:
    """Held-out scores of all circuits under one ablation, beside the full model, the complement, random circuits, nothing."""

    def __init__(self, result: Evaluation, ablation: str, width: int) -> None:
        self.names = list(SCORES) if width >= _ALL_SCORES else list(_NARROW)
        self.intervals = list(SCORES) if width >= _ALL_INTERVALS else ["kl"]
        self.sizes = ["total", "head"] if width >= _ALL_SCORES else ["total"]
        headings = [f"{SCORES[name]}" for name in self.names]
        headings[1:1] = ["p95", "max"] if width >= _ALL_SCORES else ["p95"]
        self.tails = headings[1 : len(headings) - len(self.names) + 1]
        sizes = {"total": "neurons", "head": "heads"}
        pairs = ", ".join(f"{task.pairs['test']} pairs of {key}" for key, task in result.tasks.items())
        title = f"{ablation} ablation: scores on held-out pairs ({pairs})"
        self.shown = _table(title, ["", *(sizes[size] for size in self.sizes), *headings], _CAPTION)
        several = len({circuit.task for circuit in result.circuits}) > 1
        for key, task in result.tasks.items():
            mine = [circuit for circuit in result.circuits if circuit.task == key]
            if mine:
                self._add(f"model on {key}" if several else "model", result.nodes, task.full)
                for circuit in mine:
                    self._add_circuit(circuit, circuit.ablations[ablation], task, len(mine) > 1)
                self._add("empty", {"total": 0, "head": 0}, mine[0].ablations[ablation].empty)

    def _add_circuit(self, circuit: EvaluatedCircuit, under: UnderAblation, task: Task, named: bool) -> None:
        label = (
            f"{'control' if circuit.control else 'circuit'} {circuit.name}" if named or circuit.control else "circuit"
        )
        self._add(label, circuit.kept, under.circuit)
        self._add("  without it", {}, under.complement)
        if under.random is not None:
            cells = [self._drawn(under.random.scores[name], name) for name in self.names]
            cells[1:1] = [""] * len(self.tails)
            self.shown.add_row(f"  {under.random.draws} random", *["="] * len(self.sizes), *cells)
        if under.off_distribution is not None and task.full_off_distribution is not None:
            self._add("  new templates", {}, under.off_distribution.circuit)
            self._add("    without it", {}, under.off_distribution.complement)
            self._add("    model", {}, task.full_off_distribution)

    def _add(self, label: str, kept: dict[str, int], scores: Scores) -> None:
        cells = [self._score(scores[name], name) for name in self.names]
        cells[1:1] = [_number(getattr(scores["kl"], tail)) for tail in self.tails]
        self.shown.add_row(label, *[str(kept.get(size, "")) for size in self.sizes], *cells)

    def _score(self, one: Score, name: str) -> str:
        return _number(one.mean) + (f" [{_short(one.low)}, {_short(one.high)}]" if name in self.intervals else "")

    def _drawn(self, one: Drawn, name: str) -> str:
        return _number(one.mean) + (f" [{_short(one.min)}, {_short(one.max)}]" if name in self.intervals else "")


def _short(value: float) -> str:
    """Three decimals, or one where they would say nothing."""
    return _number(value) if abs(value) < 10 else f"{value:.1f}"


def _number(value: float) -> str:
    """Three decimals, and no minus before nothing; a dash for what no number can be."""
    return "-" if value != value else f"{value:.3f}".replace("-0.000", "0.000")


def _cross(result: Evaluation, ablation: str) -> Table:
    """KL and exact match of every circuit on every task."""
    shown = _table(f"{ablation} ablation, circuits (rows) on tasks: KL / match", ["", *result.tasks])
    cells = {(cell.circuit, cell.task): cell for cell in result.cross[ablation]}
    for circuit in result.circuits:
        row = []
        for task in result.tasks:
            cell = cells[circuit.name, task]
            text = f"{cell.scores['kl'].mean:.3f} / {cell.scores['exact_match'].mean:.2f}"
            row.append(f"{text} *" if cell.own else text)
        shown.add_row(circuit.name, *row)
    return shown


def _curves(result: Evaluation, ablation: str) -> Table:
    shown = _table(f"{ablation} ablation, faithfulness against size", ["ranking", "level", "by", "CPR", "CMD"])
    for one in result.curves[ablation]:
        name = f"{one.method} ({one.circuit})" if one.circuit else one.method
        shown.add_row(name, one.level, one.ranking, f"{one.cpr:.3f}", f"{one.cmd:.3f}")
    return shown


def _minimality(circuit: EvaluatedCircuit, ablation: str, under: UnderAblation) -> Table:
    shown = _table(
        f"{circuit.name}: what is necessary, {ablation} ablation",
        ["nodes", "kept", "spare", "at once", "KL without all spare", "KL rises most without"],
    )
    for name, found in under.minimality.items():
        first = found.dropped[0]
        place = f"{first.layer}.{_nodes(first.nodes)}, by {first.kl_change.mean:.3f}"
        together = f"{found.together['kl'].mean:.3f}" if found.together else ""
        shown.add_row(name, str(found.kept), str(found.unnecessary), str(found.group), together, place)
    return shown


def _nodes(nodes: Sequence[int]) -> str:
    return str(nodes[0]) if len(nodes) == 1 else f"{nodes[0]}..{nodes[-1]}"


def _table(title: str, headings: Sequence[str], caption: str | None = None) -> Table:
    """An empty table. With a caption it is numbers that must not wrap, else its first column must not."""
    shown = Table(title=title, box=box.SIMPLE, pad_edge=False, collapse_padding=True, caption=caption)
    for index, heading in enumerate(headings):
        numbers = bool(index)
        shown.add_column(
            heading,
            justify="right" if numbers else "left",
            no_wrap=numbers == bool(caption),
            min_width=None if numbers else 14,
        )
    return shown


def with_verdict(result: Evaluation) -> Evaluation:
    """The same with the result of its first circuit in words, also the awkward parts."""
    circuit = result.circuits[0]
    (ablation, under), *others = circuit.ablations.items()
    kl = under.circuit["kl"]
    interval = f"95% interval {_number(kl.low)} to {_number(kl.high)}, worst pair {kl.max:.2f}"
    text = (
        f"With {ablation.replace('_', ' ')} ablation, {circuit.kept['total']:,} of {result.nodes['total']:,} neurons "
        f"({circuit.kept['head']} of {result.nodes['head']} heads) predict what the full model predicts on "
        f"{under.circuit['exact_match'].mean:.0%} of the held-out pairs (KL {_number(kl.mean)} nats, {interval}); the rest without "
        f"them on {under.complement['exact_match'].mean:.0%} (KL {_number(under.complement['kl'].mean)}"
        f"{', no worse than the circuit' if _no_worse(under) else ''}).{_chance(under)}"
    )
    further = "".join(_under_another(name, other) for name, other in others)
    parts = [_spare(under), _interference(under), _abroad(under), further, _control(result, circuit, ablation)]
    return replace(result, verdict=_nothing(circuit, under) + text + "".join(parts))


def _nothing(circuit: EvaluatedCircuit, under: UnderAblation) -> str:
    """Where scores say little."""
    text = "" if circuit.kept["total"] else "This circuit keeps nothing. "
    if under.circuit["recovered"].mean != under.circuit["recovered"].mean:
        text += "Closing everything changes no mean logit difference, so no share of it can be recovered. "
    return text


def _no_worse(under: UnderAblation) -> bool:
    """Whether the rest without the circuit is as close to the full model."""
    return under.complement["kl"].mean <= under.circuit["kl"].mean


def _under_another(ablation: str, under: UnderAblation) -> str:
    """KL under a further ablation, and what is as close there although it should not be."""
    as_good = [f"the rest without it (KL {_number(under.complement['kl'].mean)})"] if _no_worse(under) else []
    if under.random is not None and under.random.distinct and (better := under.random.scores["kl"].better):
        as_good.append(f"{better} of {under.random.draws} random circuits")
    text = (
        f" With {ablation.replace('_', ' ')} ablation its KL is {_number(under.circuit['kl'].mean)} and it predicts what the full "
        f"model predicts on {under.circuit['exact_match'].mean:.0%}"
    )
    return f"{text}; as close: {' and '.join(as_good)}." if as_good else f"{text}."


def _chance(under: UnderAblation) -> str:
    if under.random is None:
        return ""
    if not under.random.distinct:
        return " There is no other circuit of this shape."
    kl = under.random.scores["kl"]
    found = "None" if not kl.better else str(kl.better)
    verb = "is" if kl.better < 2 else "are"
    return (
        f" {found} of {under.random.draws} random circuits of the same shape {verb} as close (the best: KL {_number(kl.min)}; "
        f"p = {kl.p:.2g})."
    )


def _spare(under: UnderAblation) -> str:
    spare = [
        f"{found.unnecessary} of {found.kept} {NODE_NAMES[name]}"
        for name, found in under.minimality.items()
        if found.unnecessary
    ]
    if not under.minimality:
        return ""
    grouped = ", or group of nodes," if any(found.group > 1 for found in under.minimality.values()) else ""
    return f" Not shown to be needed: {', '.join(spare)}." if spare else f" Every kept node{grouped} is needed."


def _interference(under: UnderAblation) -> str:
    """Where opening more of the model makes it worse than the circuit alone."""
    alone = under.circuit["kl"].high
    worse = [point for point in under.partial if 0 < point.fraction < 1 and point.kl > alone]
    if not worse:
        return ""
    worst = max(worse, key=lambda point: point.kl)
    return f" It works best when the rest is off: with {worst.fraction:.0%} of the rest open KL is {worst.kl:.3f}."


def _abroad(under: UnderAblation) -> str:
    off = under.off_distribution
    if off is None:
        return ""
    inside, without = off.circuit["kl"].mean, off.complement["kl"].mean
    return f" On {off.pairs} pairs of templates held out its KL is {inside:.3f}, that of the rest {without:.3f}."


def _control(result: Evaluation, circuit: EvaluatedCircuit, ablation: str) -> str:
    found = [one for one in result.circuits if one.control and one.task == circuit.task and ablation in one.ablations]
    return "".join(
        f" The control {one.name} reaches KL {one.ablations[ablation].circuit['kl'].mean:.3f}." for one in found
    )
