"""Counts, scores and shares as text."""

import math

import pytest

from bigcircuit.metrics import numbers


@pytest.mark.parametrize(
    ("value", "page", "terminal"),
    [
        (1234.5678, "1,234.568", "1234.568"),
        (-0.25, "−0.250", "-0.250"),
        (-0.0004, "0.000", "0.000"),
        (0.0, "0.000", "0.000"),
        (math.nan, "–", "-"),
        (None, "–", "-"),
    ],
)
def test_scores(value, page, terminal):
    assert numbers.score_text(value) == page
    assert numbers.terminal_score_text(value) == terminal


def test_small_scores_are_precise_where_there_is_room():
    assert [numbers.precise_text(value) for value in (0.0012345, 0.0, None, 0.5)] == ["0.0012", "0.000", "–", "0.500"]
    assert numbers.terminal_score_text(12.345, 1) == "12.3"


@pytest.mark.parametrize(
    ("share", "text"), [(0, "0%"), (1e-4, "<0.1%"), (0.0312, "3.1%"), (0.1, "10%"), (0.876, "88%"), (1, "100%")]
)
def test_percentages(share, text):
    assert numbers.percent_text(share) == text


@pytest.mark.parametrize(
    ("values", "form", "text"),
    [([3, 1234], ",", "3–1,234"), ([0.5, 0.501], ".2f", "0.50"), ([0.2, 1.0], ".0%", "20–100%"), ([7], ",", "7")],
)
def test_ranges(values, form, text):
    assert numbers.range_text(values, form) == text


def test_ticks_have_no_exponent_and_no_trailing_zeros():
    assert [numbers.tick_text(value, 0) for value in (0.5, 2.0, 10, 12000.0)] == ["0.5", "2", "10", "12,000"]
