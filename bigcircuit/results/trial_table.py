"""Table of the trials of a sweep: trials.csv and trials.parquet."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from bigcircuit.metrics.registry import SCORES
from bigcircuit.results.sweep import SweepResult, SweepTrial

Row = Mapping[str, Any]
_TYPES = {"step": pa.int64(), "steps": pa.int64(), "circuit": pa.string(), "error": pa.string()}
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")
"""How text begins that spreadsheets take for a formula."""
_FLOATS = ("kl", "kl.low", "kl.high", "validation.kl", "parameters_kept")


def trial_rows(sweep: SweepResult) -> list[Row]:
    """Make one row per trial, all with the same columns; a value that does not exist (yet) is None.

    Columns of settings are dotted keys; `validation.*`: the last validation; scores: on the held-out pairs.
    """
    nodes = next((list(trial.row["kept"]) for trial in sweep.finished), ["total"])
    return [_row(sweep, trial, nodes) for trial in sweep.trials]


def _row(sweep: SweepResult, trial: SweepTrial, nodes: Sequence[str]) -> Row:
    record, validation = trial.record, trial.last_validation
    found = trial.row if trial.summary is not None else {"scores": {}, "kept": {}}
    kl = found["scores"].get("kl", {})
    return {
        "number": trial.number,
        "status": record.status,
        **{key: record.settings.get(key) for key in sweep.searched},
        "step": record.step,
        "steps": record.steps,
        "seconds": float(record.seconds),
        **{f"validation.{key}": validation.get(key) for key in ("kl", "kept.total")},
        "kl": kl.get("mean"),
        "kl.low": kl.get("low"),
        "kl.high": kl.get("high"),
        **{name: found["scores"].get(name, {}).get("mean") for name in _other_scores()},
        **{f"kept.{name}": found["kept"].get(name) for name in nodes},
        "parameters_kept": found.get("parameters_kept"),
        "on_front": trial in sweep.front,
        "circuit": str(trial.circuit.relative_to(sweep.path)) if trial.summary is not None else None,
        "error": record.error,
    }


def _other_scores() -> list[str]:
    """List the scores that have a column for the mean alone; KL also has its interval."""
    return [name for name, kind in SCORES.items() if kind.in_brief and name != "kl" and "pairs" in kind.on]


def as_csv(columns: Sequence[str], table: Sequence[Row]) -> bytes:
    """Write rows as CSV with a header; None is an empty cell, booleans, lists and mappings are JSON.

    Text that a spreadsheet would compute as a formula has an apostrophe before it.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(_cell, columns))
    writer.writerows([_cell(row[column]) for column in columns] for row in table)
    return file.getvalue().encode()


def _cell(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_FORMULAS):
        return f"'{value}"
    return json.dumps(value) if isinstance(value, (bool, list, dict)) else value


def as_parquet(columns: Sequence[str], table: Sequence[Row]) -> bytes:
    """Write rows as Parquet; the column of a setting with values of several types is text."""
    file = io.BytesIO()
    parquet.write_table(pa.table({key: _column(key, [row[key] for row in table]) for key in columns}), file)
    return file.getvalue()


def _column(key: str, values: Sequence[Any]) -> pa.Array:
    """Make a typed column; an empty column has the type of its future values."""
    if key.startswith(("kept.", "validation.kept.")):
        kind = pa.int64()
    else:
        kind = pa.float64() if key in (*_FLOATS, *_other_scores()) else _TYPES.get(key)
    try:
        return pa.array(values, kind)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([value if value is None or isinstance(value, str) else json.dumps(value) for value in values])
