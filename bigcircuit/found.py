"""What a run has found, before anything of it is written."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from bigcircuit.circuit import Circuit


class Found(NamedTuple):
    """Member by member."""

    circuits: list[Circuit]
    members: list[dict[str, Any]]
    """Rows of the summary, without the names of the circuit files."""
    examples: list[Any]
    """Predictions on a few held-out prompts, see evaluation/examples.py."""
    shared: dict[str, Any]
    """The rest of the summary."""

    def summary(self, files: Sequence[str], seconds: float) -> dict[str, Any]:
        """The content of summary.json."""
        rows = [{**row, "circuit": file} for row, file in zip(self.members, files, strict=True)]
        return {**self.shared, "members": rows, "seconds": round(seconds, 1)}

    def alone(self, index: int) -> "Found":
        """One member as if it had been alone."""
        return Found(
            [self.circuits[index]], [{**self.members[index], "member": 0}], [self.examples[index]], self.shared
        )
