"""Table of the trials of a sweep: trials.csv and trials.parquet."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import parquet

from bigcircuit.results.sweep import SweepResult, SweepTrial

Row = Mapping[str, Any]
TRIAL_SCORES = ("logit_difference", "recovered", "accuracy", "exact_match")


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
        **{name: found["scores"].get(name, {}).get("mean") for name in TRIAL_SCORES},
        **{f"kept.{name}": found["kept"].get(name) for name in nodes},
        "parameters_kept": found.get("parameters_kept"),
        "on_front": trial in sweep.front,
        "circuit": str(trial.circuit.relative_to(sweep.path)) if trial.summary is not None else None,
        "error": record.error,
    }


def as_csv(columns: Sequence[str], table: Sequence[Row]) -> bytes:
    """Write rows as CSV with a header; None is an empty cell, booleans, lists and mappings are JSON."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_cell(row[column]) for column in columns] for row in table)
    return file.getvalue().encode()


def _cell(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (bool, list, dict)) else value


def as_parquet(columns: Sequence[str], table: Sequence[Row]) -> bytes:
    """Write rows as Parquet; the column of a setting with values of several types is text."""
    file = io.BytesIO()
    parquet.write_table(pa.table({key: _column(key, [row[key] for row in table]) for key in columns}), file)
    return file.getvalue()


_KINDS = {"step": pa.int64(), "steps": pa.int64(), "circuit": pa.string(), "error": pa.string()}
_WHOLE, _SHARES = ("kept.", "validation.kept."), ("kl", "validation.kl", "parameters_kept", *TRIAL_SCORES)


def _column(key: str, values: Sequence[Any]) -> pa.Array:
    """Make a typed column; an empty column has the type of its future values."""
    kind = pa.int64() if key.startswith(_WHOLE) else pa.float64() if key in (*_SHARES, "kl.low", "kl.high") else None
    try:
        return pa.array(values, _KINDS.get(key, kind))
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([value if value is None or isinstance(value, str) else json.dumps(value) for value in values])
