"""Schema of evaluation.json: these classes as JSON objects, field by field (`dataclasses.asdict`).

comparison.json is written in the same way, from the classes of comparison.py. Scores are grouped by the ablation under which
they were measured: `circuits[i].ablations["zero"].circuit["kl"]`. Names of scores: SCORES of metrics/registry.py. Names of
granularities: those of model/granularity.py, and `total` for site neurons.
"""

from dataclasses import dataclass, field
from typing import Any

from bigcircuit.metrics.registry import Score, Scores

EVALUATION = "bigcircuit-evaluation/1"
COMPARISON = "bigcircuit-comparison/1"
ADDED_LATER = {"added_later": True}
"""Metadata of a field that files of earlier versions lack, and without which they are read."""


@dataclass(frozen=True)
class Drawn:
    """One score of many random circuits: the distribution of their means over pairs."""

    mean: float
    sd: float
    min: float
    p5: float
    p95: float
    max: float
    better: int
    """Number of random circuits that are at least as good as the circuit."""
    p: float
    """(better + 1) / (draws + 1): chance that a random circuit of this shape is as good."""


@dataclass(frozen=True)
class RandomCircuits:
    """Random circuits of the same shape: in every layer as many heads, attention neurons within them and MLP neurons."""

    draws: int
    scores: dict[str, Drawn]
    distinct: bool
    """False where all draws are the circuit itself: every layer keeps all of its nodes, or none."""


@dataclass(frozen=True)
class Point:
    """Scores of the circuit with a part of its complement open."""

    fraction: float
    """Share of the complement's neurons that are open: 0 is the circuit alone, 1 the full model."""
    neurons: int
    """Number of open site neurons."""
    draws: int
    kl: float
    """Mean over draws and pairs, nats."""
    kl_low: float = field(metadata=ADDED_LATER)
    """Lower end of the 95% bootstrap interval of this mean over pairs."""
    kl_high: float = field(metadata=ADDED_LATER)
    kl_max: float
    """KL of the worst draw, nats."""
    logit_difference: float
    exact_match: float


@dataclass(frozen=True)
class Dropped:
    """Effect of closing one kept node, or a group of kept nodes, on the circuit."""

    layer: int
    nodes: list[int]
    """Indices within the layer; a single node, unless there are too many to test one by one."""
    neurons: int
    """Number of site neurons that are closed with the nodes."""
    kl_change: Score
    """KL without the nodes - KL of the circuit, nats."""
    logit_difference_change: Score
    necessary: bool
    """The change of KL is above the tolerance, and its interval above 0."""


@dataclass(frozen=True)
class Minimality:
    """Minimality at one granularity: every kept node closed, one after the other."""

    kept: int
    group: int
    """Number of nodes that are closed together."""
    tolerance: float
    """Change of KL up to which a node is unnecessary, nats."""
    dropped: list[Dropped]
    """Largest change of KL first."""
    unnecessary: int
    """Number of kept nodes, not of groups."""
    together: Scores | None
    """Scores of the circuit without all unnecessary nodes at once; null if no node is unnecessary, or all nodes are."""


@dataclass(frozen=True)
class Split:
    """Scores off the distribution: on pairs of templates that no circuit was trained on."""

    pairs: int
    circuit: Scores
    complement: Scores
    empty: Scores


@dataclass(frozen=True)
class Means:
    """Origin of the means of an ablation, or of the means from which learned constants started."""

    data: str
    """A pair file, a task builder, or `training pairs` of the circuit's task."""
    sha256: str
    """Hash of the pairs in order; of all pairs of the task where the means are over its training pairs. Empty where the constants
    come from a circuit file that does not record a hash."""
    prompts: str
    """`corrupted`, `clean` or `both`."""
    in_file: bool
    """Whether the circuit's constants come from its file."""


@dataclass(frozen=True)
class UnderAblation:
    """All scores of one circuit under one ablation, on the held-out pairs of the task it was found on."""

    means: Means | None
    """Null for ablations without constants."""
    circuit: Scores
    complement: Scores
    """Completeness: the model without the circuit."""
    empty: Scores
    """All nodes ablated."""
    random: RandomCircuits | None
    partial: list[Point]
    """Partly open complements by fraction, from 0 to 1."""
    minimality: dict[str, Minimality]
    """Minimality by granularity; only under the ablation that the circuit was found under, or the first other ablation without
    constants to learn for every test; else empty."""
    off_distribution: Split | None


@dataclass(frozen=True)
class EvaluatedCircuit:
    """One circuit: its origin, its size, and its scores by ablation."""

    name: str
    """Unique within the evaluation: the member of a run, or the name of the file."""
    file: str
    sha256: str
    task: str
    """Task that the circuit was found on: a key of Evaluation.tasks."""
    found_under: str
    """Ablation that the circuit was found under."""
    labels: str
    """`own`, or `random` for a control that was trained on the labels of other pairs (`task.labels`)."""
    seed: str
    kept: dict[str, int]
    parameters_kept: float
    """Share of the parameters of the decoder layers."""
    parameters: dict[str, int]
    """`kept` and `total`."""
    examples: list[dict[str, Any]]
    """Predictions on a few held-out prompts, as in a run's examples.json, under the ablation of the minimality."""
    control: bool
    """Given as `--control`: found on random labels, or in another way that should not work."""
    ablations: dict[str, UnderAblation]


@dataclass(frozen=True)
class Task:
    """One set of pairs and the scores of the full model on them."""

    name: str
    sha256: str
    pairs: dict[str, int]
    """Number by split: train, validation, test, off_distribution."""
    left_out: dict[str, int]
    """Number of pairs left out: `bad`, `unsolved`."""
    full: Scores
    """The full model on the test split."""
    full_off_distribution: Scores | None


@dataclass(frozen=True)
class CurvePoint:
    """Scores of the circuit of the best-ranked nodes at one size; all but the deviations are means over draws."""

    fraction: float
    """Share of the ranked nodes that is kept."""
    size: int
    """Number of kept nodes of the level; at level `neuron` of site neurons."""
    neurons: int
    """Number of kept site neurons."""
    kl: float
    kl_low: float = field(metadata=ADDED_LATER)
    """Lower end of the 95% bootstrap interval over pairs."""
    kl_high: float = field(metadata=ADDED_LATER)
    logit_difference: float
    exact_match: float
    faithfulness: float
    """(m(C) - m(empty)) / (m(full) - m(empty)), m the mean logit difference."""
    low: float
    """Lower end of the 95% bootstrap interval of the faithfulness over pairs."""
    high: float
    kl_sd: float
    """Standard deviation of KL over draws, 0 for a single draw."""
    sd: float
    """Standard deviation of the faithfulness over draws."""


@dataclass(frozen=True)
class Curve:
    """Faithfulness against size of one ranking, with the areas of the MIB benchmark (metrics/mib.py)."""

    method: str
    """`learned` (the strengths of a circuit's gates) or a baseline."""
    circuit: str | None
    """Name of the circuit whose gates are ranked; null for baselines."""
    level: str
    """`neuron` (attention and MLP neurons ranked together), or a granularity: only nodes of that granularity are closed."""
    ranking: str
    """`signed` or `absolute`: by score, or by its absolute value. Results of the two are not comparable."""
    draws: int
    """Number of random rankings, over which all values are means; 1 for a ranking that is not random."""
    cpr: float
    """Area under faithfulness over the fraction kept; 1 is the full model at every size, more is better."""
    cpr_low: float
    """Lower end of the 95% bootstrap interval over pairs."""
    cpr_high: float
    cpr_sd: float
    """Standard deviation over draws, 0 for a single draw."""
    cmd: float
    """Area of |1 - faithfulness|; 0 is best."""
    cmd_low: float
    cmd_high: float
    cmd_sd: float
    points: list[CurvePoint]


@dataclass(frozen=True)
class Cell:
    """Scores of one circuit on the pairs of one task."""

    circuit: str
    task: str
    own: bool
    """Whether the circuit was found on this task."""
    scores: Scores


@dataclass(frozen=True)
class Check:
    """Answer to a question about a circuit."""

    name: str
    """`faithful`, `complete`, `better than random` or `minimal`."""
    answer: str
    """`yes`; `partly`: by the mean, but not by its 95% interval, or nearly; `no`; `not measured`."""
    evidence: str
    """The numbers that decide."""


CHECK_SIGNS = {"yes": "✓", "partly": "~", "no": "✗", "not measured": "?"}
"""Answer of a Check -> its sign."""


@dataclass(frozen=True)
class Evaluation:
    """Content of evaluation.json."""

    model: dict[str, str]
    """`path`, and sha256 of `config`, `weights`, `tokenizer`, `adapter`."""
    nodes: dict[str, int]
    """Number of nodes of the model, by granularity and as `total`."""
    tasks: dict[str, Task]
    circuits: list[EvaluatedCircuit]
    """Controls last."""
    cross: dict[str, list[Cell]]
    """Every circuit on every task, by ablation; empty with one task."""
    curves: dict[str, list[Curve]]
    """Curves by ablation, on the test split of the first circuit's task and of circuits found on that task only."""
    no_curves: list[str]
    """One sentence per requested curve that cannot be measured: which, and why."""
    unfinished: list[str]
    """Requested ablations that are not measured yet; empty at the end."""
    verdict: str
    """The result in sentences."""
    settings: dict[str, Any]
    """Options of the evaluation."""
    command: list[str]
    versions: dict[str, str]
    seconds: float
    format: str = EVALUATION
    inside: dict[str, Any] = field(default_factory=dict)
    """Circuit -> what its most needed heads and neurons do, see evaluation/inside.py; not with weights in pieces or in files."""
    checks: list[Check] = field(default_factory=list)
    """Four answers about the first circuit under its first ablation; empty in files of earlier versions."""
