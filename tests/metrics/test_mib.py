"""CPR and CMD against numbers worked out by hand and against an independent integration."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigcircuit.metrics.mib import FRACTIONS, areas, faithfulness, ranked, sizes

TOLERANCE = 1e-9


def test_the_ten_sizes_are_rounded_down():
    assert FRACTIONS == (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
    assert sizes(1000) == [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    assert sizes(157) == [0, 0, 0, 1, 3, 7, 15, 31, 78, 157]


def test_the_full_model_at_every_size():
    """f = 1 everywhere: the area is the width of the interval, which begins at 0.1% and not at 0."""
    found = areas([1.0] * 10)
    assert found.cpr == pytest.approx(0.999, abs=TOLERANCE)
    assert found.cmd == 0


def test_a_line_is_integrated_exactly():
    """f(p) = p: CPR = (1 - 0.001^2) / 2, CMD = (1 - 0.001)^2 / 2."""
    found = areas(FRACTIONS)
    assert found.cpr == pytest.approx((1 - 1e-6) / 2, abs=TOLERANCE)
    assert found.cmd == pytest.approx(0.999**2 / 2, abs=TOLERANCE)


def test_overshooting_counts_for_cpr_and_against_cmd():
    """f = 0 up to 20%, 1.5 at 50%, 1 at 100%: by hand, trapezoids of widths 0.3 and 0.5."""
    found = areas([0, 0, 0, 0, 0, 0, 0, 0, 1.5, 1])
    assert found.cpr == pytest.approx(0.3 * 0.75 + 0.5 * 1.25, abs=TOLERANCE)
    assert found.cmd == pytest.approx(0.199 * 1 + 0.3 * 0.75 + 0.5 * 0.25, abs=TOLERANCE)


def test_a_graph_by_hand_signed_and_absolute():
    """Ten nodes that add their worth to m: the harmful one is kept last by sign and first by absolute value."""
    worth = [5.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, -6.0]
    empty, full = 1.0, 1.0 + sum(worth)
    by_hand = {
        # kept at 10, 20, 50, 100%; m(C) - m(empty) is 5, 6, 9, 4 by sign and -6, -1, 2, 4 by absolute value, of 4
        "signed": [0, 0, 0, 0, 0, 0, 5 / 4, 6 / 4, 9 / 4, 1],
        "absolute": [0, 0, 0, 0, 0, 0, -6 / 4, -1 / 4, 2 / 4, 1],
    }
    for ranking, expected in by_hand.items():
        order = ranked(torch.tensor(worth), ranking).argsort(descending=True, stable=True).tolist()
        values = [empty + sum(worth[node] for node in order[:k]) for k in sizes(10)]
        found = [faithfulness(m, empty, full) for m in values]
        assert found == pytest.approx(expected, abs=TOLERANCE)
        widths = np.diff(FRACTIONS)
        cpr = sum(w * (a + b) / 2 for w, a, b in zip(widths, expected, expected[1:], strict=False))
        cmd = sum(w * (abs(1 - a) + abs(1 - b)) / 2 for w, a, b in zip(widths, expected, expected[1:], strict=False))
        assert areas(found) == pytest.approx((cpr, cmd), abs=TOLERANCE)


@given(st.lists(st.floats(-3, 3), min_size=10, max_size=10))
def test_against_an_integral_of_the_joined_points(values):
    """Closed integral of the piecewise linear interpolation, |1 - f| taken at the points."""
    p = np.asarray(FRACTIONS)
    fine = np.unique(np.concatenate([np.linspace(a, b, 5) for a, b in zip(p, p[1:], strict=False)]))
    middle = (fine[:-1] + fine[1:]) / 2
    found = areas(values)
    for y, area in ((np.asarray(values), found.cpr), (np.abs(1 - np.asarray(values)), found.cmd)):
        assert area == pytest.approx(float((np.interp(middle, p, y) * np.diff(fine)).sum()), abs=TOLERANCE)
    assert found.cmd >= 0.999 - found.cpr - TOLERANCE


def test_missing_scores_come_last_and_no_difference_is_not_a_number():
    assert ranked(torch.tensor([-1.0, math.nan, 0.5]), "absolute").argsort(descending=True).tolist() == [0, 2, 1]
    assert math.isnan(faithfulness(1.0, 2.0, 2.0))
