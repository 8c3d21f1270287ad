"""Read what `bigcircuit check` prints, and the rows of a table of Markdown."""

import re
from collections.abc import Sequence

MIB = 2**20


def proposals(output: str) -> list[dict[str, str]]:
    """Read the settings that `check` proposes for a run that does not fit, those for other numbers of ranks left out."""
    lines = [line for line in output.splitlines() if re.match(r"\s+--[a-z]", line)]
    return [dict(re.findall(r"--(\S+) (\S+)", line)) for line in lines if not re.search(r" on \d+ ranks", line)]


def predicted_bytes(output: str) -> int:
    """Read the peak memory of a rank that `check` predicts."""
    found = re.search(r"together\W+([\d,]+\.\d)", output)
    assert found, output
    return round(float(found[1].replace(",", "")) * MIB)


def tokens_at_once(output: str) -> int:
    """Read from what `check` prints how many tokens, padding included, go through the model at once in one stream."""
    found = re.search(r"(\d+) x (\d+) tokens at once", " ".join(output.split()))
    assert found, output
    return int(found[1]) * int(found[2])


def rows_of(text: str, names: Sequence[str]) -> dict[str, str]:
    """Read the rows of a table by the name in their first column."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return {name: line for line in lines if (name := line.split("|")[1].strip()) in names}
