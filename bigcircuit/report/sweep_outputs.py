"""Outputs of a sweep, made from its folder: table of trials, Pareto front with its circuits, and report page."""

import re
from collections.abc import Sequence
from pathlib import Path

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.io.files import remove, write_bytes
from bigcircuit.report.svg import write_figures
from bigcircuit.report.sweep_figures import front_chart
from bigcircuit.report.sweep_page import render_sweep
from bigcircuit.results.sweep import SweepResult, read_sweep
from bigcircuit.results.trial_table import Row, as_csv, as_parquet, trial_rows

_TRIAL_CIRCUIT = re.compile(r"\d+\.safetensors")


def write_sweep_outputs(folder: Path) -> None:
    """Write all outputs from the trials so far; circuits and scores are those of finished trials.

    Files are replaced atomically; the same trials give the same files. Raises UserError naming a file of the sweep that is
    missing or damaged.
    """
    sweep = read_sweep(folder)
    for trial in sweep.front:
        Circuit.load(trial.circuit)  # a damaged circuit is reported before anything is written
    table = trial_rows(sweep)
    columns = list(table[0]) if table else ["number"]
    write_bytes(folder / "trials.csv", as_csv(columns, table))
    write_bytes(folder / "trials.parquet", as_parquet(columns, table))
    write_front(sweep, columns, table)
    render_sweep(sweep)


def write_front(sweep: SweepResult, columns: Sequence[str], table: Sequence[Row]) -> None:
    """Write the Pareto front as table, figure and circuit files, and remove circuits that are no longer on the front."""
    by_number = {row["number"]: row for row in table}
    files = {trial.number: f"circuits/{trial.folder.name}.safetensors" for trial in sweep.front}
    for trial in sweep.front:
        write_bytes(sweep.path / files[trial.number], trial.circuit.read_bytes())
    front = [{**by_number[number], "circuit": file} for number, file in files.items()]
    write_bytes(sweep.path / "front.csv", as_csv(columns, front))
    if front:
        write_figures([front_chart(sweep.finished, sweep.front)], sweep.path, ("svg", "png"))
    for path in (sweep.path / "circuits").glob("*.safetensors"):
        if _TRIAL_CIRCUIT.fullmatch(path.name) and f"circuits/{path.name}" not in files.values():
            remove(path)
