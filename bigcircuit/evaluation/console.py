"""Tables of an evaluation on the terminal."""

from collections.abc import Iterator, Mapping, Sequence

from rich import box
from rich.table import Table

from bigcircuit.attribution.baselines import METHOD_LABELS
from bigcircuit.circuit.nodes import held_neurons, node_names
from bigcircuit.metrics.numbers import terminal_score_text
from bigcircuit.metrics.registry import SCORES, Score, Scores, is_on_text
from bigcircuit.results.evaluation import CHECK_SIGNS, Drawn, EvaluatedCircuit, Evaluation, Task, UnderAblation
from bigcircuit.runtime.progress import ProgressDisplay
from bigcircuit.runtime.tables import first_that_fits

_SIZES = {"total": "neurons", "head": "heads"}
_CAPTION = (
    "[] 95% interval over pairs, or documents of text; of random circuits of the same shape, the lowest and the highest"
)


def show_evaluation(result: Evaluation, progress: ProgressDisplay) -> None:
    """Print the tables of every ablation, minimality of the circuits, and the verdict."""
    ablations = dict.fromkeys(name for circuit in result.circuits for name in circuit.ablations)
    for ablation in ablations:
        progress.print_table(score_table(result, ablation, progress.console.width))
        if result.cross.get(ablation):
            progress.print_table(_cross(result, ablation))
        if result.curves.get(ablation):
            progress.print_table(_curves(result, ablation))
    for circuit in result.circuits:
        for ablation, under in circuit.ablations.items():
            if under.minimality:
                progress.print_table(_minimality(circuit, ablation, under, result.nodes))
    if result.checks and sum(not circuit.control for circuit in result.circuits) > 1:
        progress.print_line(f"of {result.circuits[0].name}:")
    for check in result.checks:
        progress.print_line(f"{CHECK_SIGNS[check.answer]} {check.name}: {check.answer}; {check.evidence}")
    progress.print_line(result.verdict)


def score_table(result: Evaluation, ablation: str, width: int) -> Table:
    """Make the table of held-out scores under one ablation: circuits beside full model, complement, random and empty circuit.

    width: columns of the terminal; the table has as many scores and intervals as fit, always with the interval of KL.
    """
    known = {name for task in result.tasks.values() for name in task.full}
    every = [name for name in SCORES if name in known]
    narrow = [name for name in every if SCORES[name].in_narrow]
    tails = SCORES["kl"].tails
    return first_that_fits(
        (
            _ScoreTable(result, ablation, scores, intervals, shown_tails, sizes).table
            for scores, intervals, shown_tails, sizes in (
                (every, every, tails, list(_SIZES)),
                (every, ["kl"], tails, list(_SIZES)),
                (every, ["kl"], tails[:1], ["total"]),
                (narrow, ["kl"], tails[:1], ["total"]),
            )
        ),
        width,
    )


class _ScoreTable:
    """Table of held-out scores under one ablation, with some of the scores, intervals, tails of KL and sizes."""

    def __init__(
        self,
        result: Evaluation,
        ablation: str,
        scores: Sequence[str],
        intervals: Sequence[str],
        tails: Sequence[str],
        sizes: Sequence[str],
    ) -> None:
        self._scores, self._intervals, self._tails, self._sizes = scores, intervals, tails, sizes
        parts = ", ".join(
            f"{task.pairs['test']} {'windows' if is_on_text(task.full) else 'pairs'} of {key}"
            for key, task in result.tasks.items()
        )
        title = f"{ablation} ablation: held-out scores on {parts}"
        self.table = _table(title, ["", *(_SIZES[size] for size in sizes), *self._headings()], _CAPTION)
        several = len({circuit.task for circuit in result.circuits}) > 1
        for key, task in result.tasks.items():
            mine = [circuit for circuit in result.circuits if circuit.task == key]
            if mine:
                self._add(f"model on {key}" if several else "model", result.nodes, task.full)
                for circuit in mine:
                    self._add_circuit(circuit, circuit.ablations[ablation], task, len(mine) > 1)
                self._add("empty", {"total": 0, "head": 0}, mine[0].ablations[ablation].empty)

    def _headings(self) -> Iterator[str]:
        for name in self._scores:
            yield SCORES[name].short
            yield from self._tails if name == "kl" else ()

    def _add_circuit(self, circuit: EvaluatedCircuit, under: UnderAblation, task: Task, named: bool) -> None:
        label = "control" if circuit.control else "circuit"
        self._add(f"{label} {circuit.name}" if named or circuit.control else label, circuit.kept, under.circuit)
        self._add("  without it", {}, under.complement)
        if under.random is not None:
            cells = self._cells({name: self._drawn(name, drawn) for name, drawn in under.random.scores.items()})
            self.table.add_row(f"  {under.random.draws} random", *["="] * len(self._sizes), *cells)
        if under.off_distribution is not None and task.full_off_distribution is not None:
            self._add("  new templates", {}, under.off_distribution.circuit)
            self._add("    without it", {}, under.off_distribution.complement)
            self._add("    model", {}, task.full_off_distribution)

    def _add(self, label: str, kept: Mapping[str, int], scores: Scores) -> None:
        tails = [terminal_score_text(getattr(scores["kl"], tail)) for tail in self._tails]
        cells = self._cells({name: self._score(name, score) for name, score in scores.items()}, tails)
        self.table.add_row(label, *[str(kept.get(size, "")) for size in self._sizes], *cells)

    def _cells(self, texts: Mapping[str, str], tails: Sequence[str] | None = None) -> Iterator[str]:
        """Order the texts of the scores as the headings; tails: of KL, empty cells by default."""
        for name in self._scores:
            yield texts.get(name, "")
            if name == "kl":
                yield from tails or [""] * len(self._tails)

    def _score(self, name: str, score: Score) -> str:
        return self._with_range(name, score.mean, score.low, score.high)

    def _drawn(self, name: str, drawn: Drawn) -> str:
        return self._with_range(name, drawn.mean, drawn.min, drawn.max)

    def _with_range(self, name: str, mean: float, low: float, high: float) -> str:
        ends = (terminal_score_text(end, 3 if abs(end) < 10 or end != end else 1) for end in (low, high))
        return terminal_score_text(mean) + (f" [{', '.join(ends)}]" if name in self._intervals else "")


def _cross(result: Evaluation, ablation: str) -> Table:
    """Make the table of the headline scores of every circuit on every task."""
    known = {name for cell in result.cross[ablation] for name in cell.scores}
    scores = {name: kind for name, kind in SCORES.items() if kind.headline and name in known}
    headings = " / ".join(kind.short for kind in scores.values())
    shown = _table(f"{ablation} ablation, circuits (rows) on tasks: {headings}", ["", *result.tasks])
    cells = {(cell.circuit, cell.task): cell for cell in result.cross[ablation]}
    for circuit in result.circuits:
        row = []
        for task in result.tasks:
            cell = cells[circuit.name, task]
            means = {name: cell.scores[name].mean for name in scores if name in cell.scores}
            text = " / ".join(format(means[name], scores[name].headline) if name in means else "-" for name in scores)
            row.append(f"{text} *" if cell.own else text)
        shown.add_row(circuit.name, *row)
    return shown


def _curves(result: Evaluation, ablation: str) -> Table:
    """Make the table of the areas of all rankings."""
    shown = _table(f"{ablation} ablation, faithfulness against size", ["ranking", "level", "by", "CPR", "CMD"])
    for curve in result.curves[ablation]:
        label = METHOD_LABELS.get(curve.method, curve.method)
        name = f"{label} ({curve.circuit})" if curve.circuit else label
        shown.add_row(name, curve.level, curve.ranking, f"{curve.cpr:.3f}", f"{curve.cmd:.3f}")
    return shown


def _minimality(circuit: EvaluatedCircuit, ablation: str, under: UnderAblation, nodes: Mapping[str, int]) -> Table:
    """Make the table of unnecessary and of the most necessary nodes of a circuit. nodes: of the model, by granularity."""
    shown = _table(
        f"{circuit.name}: what is necessary, {ablation} ablation",
        ["nodes", "kept", "spare", "at once", "KL without all spare", "KL rises most without"],
    )
    for name, found in under.minimality.items():
        first = found.dropped[0]
        names = node_names(name, first.layer, first.nodes, held_neurons(name, nodes))
        place = f"{names}, by {first.kl_change.mean:.3f}"
        together = f"{found.together['kl'].mean:.3f}" if found.together else ""
        shown.add_row(name, str(found.kept), str(found.unnecessary), str(found.group), together, place)
    return shown


def _table(title: str, headings: Sequence[str], caption: str | None = None) -> Table:
    """Make an empty table. With a caption its numbers do not wrap, without one its first column does not."""
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
