"""Axes of figures: linear or logarithmic scales with few ticks, whose labels are plain numbers."""

import math
from collections.abc import Sequence

from matplotlib.axis import Axis, XAxis
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from bigcircuit.metrics.numbers import tick_text

_STEPS = (1, 2, 5)
"""Ticks of a decade where there is room."""


def make_linear(axis: Axis, integer: bool) -> None:
    """Set few ticks on a linear axis. integer: whether only whole numbers may have ticks."""
    axis.set_major_locator(MaxNLocator(5, integer=integer))
    _label(axis)


def make_logarithmic(axis: Axis, dense: bool | None = None) -> None:
    """Make an axis logarithmic.

    dense: whether ticks are at 1, 2 and 5 of every decade, not at 1 alone; by default if what is drawn spans less than a factor
    of 2,000.
    """
    _set_scale(axis, "log")
    if dense is None:
        low, high = axis.get_view_interval()
        dense = high < 2000 * low
    axis.set_major_locator(LogLocator(subs=_STEPS if dense else _STEPS[:1]))
    _label(axis)


def fit_scale(axis: Axis, values: Sequence[float], *, zero: bool = True) -> None:
    """Make an axis logarithmic where values are far apart, with a place for 0 if there is one; else linear.

    zero: whether a linear axis begins at 0. To be called before anything is drawn.
    """
    positive = [value for value in values if value > 0]
    if not positive or max(positive) <= 12 * min(positive):
        make_linear(axis, integer=all(isinstance(value, int) for value in values))
        if zero:
            limits = (0.0, max(positive, default=1) * 1.08)
            axis.axes.set_xlim(limits) if isinstance(axis, XAxis) else axis.axes.set_ylim(limits)
    elif min(values) > 0:
        make_logarithmic(axis, dense=max(positive) < 100 * min(positive))
    else:
        _set_scale(axis, "symlog", linthresh=min(positive), linscale=0.8)
        decades = range(math.ceil(math.log10(min(positive))), math.ceil(math.log10(max(positive))) + 1)
        axis.set_major_locator(FixedLocator([0, *(10.0**decade for decade in decades)]))
        _label(axis)


def _set_scale(axis: Axis, kind: str, **options: float) -> None:
    axes = axis.axes
    axes.set_xscale(kind, **options) if isinstance(axis, XAxis) else axes.set_yscale(kind, **options)


def _label(axis: Axis) -> None:
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(tick_text))
