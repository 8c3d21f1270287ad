"""Closing table of a run, and its result in one sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.table import Table

from bigcircuit.metrics.numbers import range_text, terminal_score_text
from bigcircuit.metrics.registry import SCORES, is_on_text
from bigcircuit.runtime.tables import first_that_fits


def closing_table(summary: Mapping[str, Any], width: int) -> Table:
    """Make the closing table: sizes and held-out means of every circuit beside the full model and the empty circuit.

    summary: content of summary.json. width: columns of the terminal; where there is room, means have their 95% intervals.
    """
    on = "text" if is_on_text(summary["full"]) else "pairs"
    brief = [name for name, kind in SCORES.items() if kind.in_brief and on in kind.on]
    narrow = [name for name in brief if SCORES[name].in_narrow]
    choices: Sequence[tuple[Sequence[str], Sequence[str]]] = (
        (brief, brief),
        (brief, ["kl", "perplexity"]),
        (brief, ["kl"]),
        (brief, []),
        (narrow, []),
    )
    return first_that_fits((_table(summary, scores, intervals) for scores, intervals in choices), width)


def _table(summary: Mapping[str, Any], scores: Sequence[str], intervals: Sequence[str]) -> Table:
    """Make the table with columns for some scores, and with intervals for some of these."""
    nodes = summary["nodes"]
    unit = "windows" if is_on_text(summary["full"]) else "pairs"
    title = f"held-out scores on {summary['pairs']['test']} {unit} of {summary['task']}, {summary['ablation']} ablation"
    shown = Table(title=title, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for heading in ("", "neurons", "heads", "param.", *(SCORES[name].short for name in scores)):
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=True)

    def add(label: str, neurons: int, heads: int, parameters: str, found: Mapping[str, Any]) -> None:
        cells = [_cell(found.get(name), name in intervals) for name in scores]
        shown.add_row(label, str(neurons), str(heads), parameters, *cells)

    add("model", nodes["total"], nodes["head"], "100%", summary["full"])
    for row in summary["members"]:
        label = f"circuit {row['member']}" if len(summary["members"]) > 1 else "circuit"
        kept = row["kept"]
        add(label, kept["total"], kept["head"], f"{row['parameters_kept']:.1%}", row["scores"])
    add("empty", 0, 0, "0%", summary["empty"])
    return shown


def _cell(score: Mapping[str, float | None] | None, interval: bool) -> str:
    """Write a mean, with its interval or without; empty for a score that an older summary does not have."""
    if score is None:
        return ""
    mean, low, high = (terminal_score_text(score[part]) for part in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]" if interval else mean


def closing_sentence(summary: Mapping[str, Any]) -> str:
    """Describe the result in one sentence: of several members the lowest and the highest values. summary: of summary.json."""
    rows, nodes = summary["members"], summary["nodes"]

    def kept(name: str) -> str:
        return f"{range_text([row['kept'][name] for row in rows], 'd')} of {nodes[name]}"

    def scored(name: str, form: str) -> str:
        return range_text([row["scores"][name]["mean"] for row in rows], form)

    kinds = {"head": "heads", "mixer_head": "mixer heads", "mlp": "MLPs", "expert": "experts"}
    counted = [(name, word) for name, word in kinds.items() if nodes.get(name)]
    kl = rows[0]["scores"]["kl"]
    interval = f", 95% interval {kl['low']:.3f} to {kl['high']:.3f}" if len(rows) == 1 else ""
    size = f"Keeping {kept('total')} neurons ({', '.join(kept(name) + f' {word}' for name, word in counted)}) "
    if is_on_text(rows[0]["scores"]):
        return (
            f"{size}{'the model has' if len(rows) == 1 else f'the {len(rows)} circuits have'} a perplexity of "
            f"{scored('perplexity', '.3f')} on held-out text, the full model {summary['full']['perplexity']['mean']:.3f} "
            f"(KL {scored('kl', '.3f')} nats a token{interval})."
        )
    return (
        f"{size}"
        f"{'the model still predicts' if len(rows) == 1 else f'the {len(rows)} circuits still predict'} what the full model "
        f"predicts on {scored('exact_match', '.0%')} of the held-out prompts and "
        f"{'prefers' if len(rows) == 1 else 'prefer'} the right answer on {scored('accuracy', '.0%')} "
        f"(KL {scored('kl', '.3f')} nats{interval})."
    )
