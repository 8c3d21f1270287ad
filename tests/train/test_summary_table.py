"""The closing table and its sentence."""

import io
import json

from rich.console import Console

from bigcircuit.train.summary_table import closing_sentence, closing_table
from tests.helpers.short_runs import run


def test_closing_table_fits_eighty_columns_and_says_it_in_words(tmp_path):
    summary = json.loads(run(tmp_path / "run").summary.read_text())
    stream = io.StringIO()
    Console(file=stream, width=80).print(closing_table(summary, width=80))
    shown = stream.getvalue()
    assert "…" not in shown
    for row in ("model", "circuit", "empty"):
        assert row in shown
    assert closing_sentence(summary).startswith("Keeping 200 of 1792 neurons")
