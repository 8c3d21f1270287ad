"""Schema of comparison.json: these classes as JSON objects, field by field (`dataclasses.asdict`)."""

from dataclasses import dataclass, field

from bigcircuit.circuit.overlap import Overlap, Stability
from bigcircuit.results.evaluation import COMPARISON


@dataclass(frozen=True)
class ComparedCircuit:
    """One circuit of a comparison."""

    name: str
    file: str
    sha256: str
    task: str
    found_under: str
    seed: str
    kept: dict[str, int]


@dataclass(frozen=True)
class Comparison:
    """comparison.json."""

    model: dict[str, str]
    """`name`, and sha256 of `config` and `weights`."""
    nodes: dict[str, int]
    circuits: list[ComparedCircuit]
    overlap: dict[str, Overlap]
    """All circuits together, by granularity."""
    stability: dict[str, Stability]
    """Pairs of circuits, by granularity."""
    frequency: dict[str, list[list[int]]]
    """Number of circuits that keep a node, by granularity, layer and node."""
    saved: dict[str, str]
    """`union`, `intersection`, `difference` -> file, as far as saved."""
    verdict: str
    command: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    format: str = COMPARISON
