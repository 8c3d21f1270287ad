"""Tables that are as detailed as there is room."""

import io

import pytest
from rich.table import Table

from bigcircuit.runtime.console import PlainConsole
from bigcircuit.runtime.tables import first_that_fits


def table(label, *headings, min_width=None):
    made = Table()
    made.add_column("circuit", min_width=min_width, no_wrap=min_width is None)
    for heading in headings:
        made.add_column(heading, no_wrap=True)
    made.add_row(label, *["0.123 [0.100, 0.150]"] * len(headings))
    return made


@pytest.mark.parametrize("min_width", [None, 8])
def test_nothing_is_cut_off_in_a_table_that_fits(min_width):
    label = "control one with a long name"
    choices = [table(label, *"abcd"[:count], min_width=min_width) for count in (4, 2, 1)]
    columns = set()
    for width in range(60 if min_width is None else 40, 140, 3):
        chosen = first_that_fits(choices, width)
        stream = io.StringIO()
        PlainConsole(file=stream, width=width).print(chosen)
        assert "…" not in stream.getvalue()
        columns.add(len(chosen.columns))
    assert columns == {5, 3, 2}


def test_without_room_for_any_the_last_is_taken():
    choices = [table("x", *"abc"), table("x", "a")]
    assert first_that_fits(choices, 10) is choices[1]
