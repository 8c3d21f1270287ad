"""Numbers as text: how counts, scores and shares are written on the terminal, on pages and in figures."""

from collections.abc import Sequence


def count_text(value: float) -> str:
    """Write a count with thousands separators."""
    return f"{value:,}"


def score_text(value: float | None) -> str:
    """Write three decimals for a page, with thousands separators and a true minus; a dash for what is not defined."""
    if value is None or value != value:
        return "–"
    return f"{_unsigned_zero(value):,.3f}".replace("-", "−")


def terminal_score_text(value: float | None, digits: int = 3) -> str:
    """Write a score for a terminal, in plain ASCII; a dash for what is not defined."""
    return "-" if value is None or value != value else f"{_unsigned_zero(value):.{digits}f}"


def _unsigned_zero(value: float) -> float:
    """Replace what three decimals would show as 0 or -0 by 0."""
    return 0.0 if abs(value) < 0.0005 else value


def precise_text(value: float | None) -> str:
    """Write as `score_text`, but two significant digits of what is small and not zero."""
    return f"{value:.2g}" if value is not None and 1e-9 < abs(value) < 0.01 else score_text(value)


def percent_text(share: float) -> str:
    """Write a share as a percentage, with a decimal only below 10%."""
    if 0 < share < 0.0005:
        return "<0.1%"
    return f"{share:.0%}" if share == 0 or share >= 0.1 else f"{share:.1%}"


def range_text(values: Sequence[float], form: str) -> str:
    """Write the lowest and the highest value, or one value if both look alike. form: format specification, such as `.3f`."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low.rstrip('%')}–{high}"


def tick_text(value: float, _: int | None = None) -> str:
    """Write the label of a tick without trailing zeros or exponents; the second argument is what matplotlib passes."""
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:g}"
