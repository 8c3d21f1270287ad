"""The end of a run: its files, and the table a person reads."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.table import Table

SUMMARY_SCORES = {
    "kl": "KL",
    "logit_difference": "logit diff",
    "recovered": "recov.",
    "accuracy": "acc.",
    "exact_match": "match",
}
"""Columns of the closing table: score -> heading. KL is in nats, `recov.` is the share of the logit difference that is
recovered, from 0 for the empty circuit to 1 for the full model, `match` the share of prompts on which the prediction is the full
model's."""


def summary_table(summary: Mapping[str, Any], wide: bool) -> Table:
    """The closing table: sizes and held-out means of every circuit beside the full model and the empty circuit.

    wide: with 95% intervals, for terminals of 130 columns or more.
    """
    nodes = summary["nodes"]
    title = f"held-out scores on {summary['pairs']['test']} pairs of {summary['task']}, {summary['ablation']} ablation"
    shown = Table(title=title, box=box.SIMPLE, pad_edge=False, collapse_padding=True)
    for heading in ("", "neurons", "heads", "param.", *SUMMARY_SCORES.values()):
        shown.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    shown.add_row("model", str(nodes["total"]), str(nodes["head"]), "100%", *_cells(summary["full"], wide))
    for row in summary["members"]:
        shown.add_row(
            f"circuit {row['member']}" if len(summary["members"]) > 1 else "circuit",
            str(row["kept"]["total"]),
            str(row["kept"]["head"]),
            f"{row['parameters_kept']:.1%}",
            *_cells(row["scores"], wide),
        )
    shown.add_row("empty", "0", "0", "0%", *_cells(summary["empty"], wide))
    return shown


def _cells(scores: Mapping[str, Mapping[str, float]], wide: bool) -> list[str]:
    shown = (scores[name] for name in SUMMARY_SCORES)
    return [f"{s['mean']:.3f}" + (f" [{s['low']:.3f}, {s['high']:.3f}]" if wide else "") for s in shown]


def summary_sentence(summary: Mapping[str, Any]) -> str:
    """The result of the first member in words."""
    row, nodes = summary["members"][0], summary["nodes"]
    scores, kept = row["scores"], row["kept"]
    return (
        f"Keeping {kept['total']} of {nodes['total']} neurons ({kept['head']} of {nodes['head']} heads, {kept['mlp']} of "
        f"{nodes['mlp']} MLPs) the model still predicts what the full model predicts on "
        f"{scores['exact_match']['mean']:.0%} of the held-out prompts and prefers the right answer on "
        f"{scores['accuracy']['mean']:.0%} (KL {scores['kl']['mean']:.3f} nats, 95% interval "
        f"{scores['kl']['low']:.3f} to {scores['kl']['high']:.3f})."
    )
