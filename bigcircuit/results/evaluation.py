"""What evaluation.json holds: these classes as JSON objects, field for field (`dataclasses.asdict`).

comparison.json is made in the same way of the classes in comparison.py.
Every score stands under the name of the ablation it was measured under: `circuits[i].ablations["zero"].circuit["kl"]`.
Names of scores: see SCORES. Names of granularities: those of gates/granularity.py, and `total` for site neurons.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigcircuit.errors import UserError
from bigcircuit.io.files import read_json, write_json
from bigcircuit.metrics.registry import Score, Scores

EVALUATION = "bigcircuit-evaluation/1"
COMPARISON = "bigcircuit-comparison/1"


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
    """Random circuits that do at least as well as the circuit."""
    p: float
    """(better + 1) / (draws + 1): chance that a random circuit of this shape does as well."""


@dataclass(frozen=True)
class RandomCircuits:
    """Circuits with, in every layer, as many heads, attention neurons within them and MLP neurons, drawn at random."""

    draws: int
    scores: dict[str, Drawn]
    distinct: bool
    """False where nothing can be drawn: all nodes of every layer are kept, or none."""


@dataclass(frozen=True)
class Point:
    """The circuit with a part of its complement open."""

    fraction: float
    """Share of the complement's neurons that are open: 0 is the circuit alone, 1 the full model."""
    neurons: int
    """Site neurons open."""
    draws: int
    kl: float
    """Mean over draws, nats."""
    kl_low: float
    """Lower end of the 95% bootstrap interval of this mean over pairs."""
    kl_high: float
    kl_max: float
    """The worst draw."""
    logit_difference: float
    exact_match: float


@dataclass(frozen=True)
class Dropped:
    """What closing one kept node, or a group of them, does to the circuit."""

    layer: int
    nodes: list[int]
    """Indices within the layer; one, unless there were too many to be tested one by one."""
    neurons: int
    """Site neurons that are closed with it."""
    kl_change: Score
    """KL without it - KL of the circuit, nats."""
    logit_difference_change: Score
    necessary: bool
    """The change of KL is above the tolerance, and its interval above 0."""


@dataclass(frozen=True)
class Minimality:
    """Every kept node of one granularity closed, one after the other."""

    kept: int
    group: int
    """Nodes closed together."""
    tolerance: float
    """Nats."""
    dropped: list[Dropped]
    """Largest change first."""
    unnecessary: int
    """Kept nodes, not groups."""
    together: Scores | None
    """Scores of the circuit without all unnecessary ones at once; null if there are none, or nothing else."""


@dataclass(frozen=True)
class Split:
    """Scores on pairs of templates that no circuit was trained on."""

    pairs: int
    circuit: Scores
    complement: Scores
    empty: Scores


@dataclass(frozen=True)
class Means:
    """What the means of an ablation are over, or those where learned constants started."""

    data: str
    """A pair file, a task builder, or `training pairs` of the circuit's task."""
    sha256: str
    """Of the pairs in order; of all pairs of the task where they are its training pairs. Empty where the circuit's file, which
    brings the constants, does not say."""
    prompts: str
    """`corrupted`, `clean` or `both`."""
    in_file: bool
    """Whether the circuit's own constants are those of its file."""


@dataclass(frozen=True)
class UnderAblation:
    """All scores of one circuit under one ablation, on the held-out pairs of the task it was found on."""

    means: Means | None
    """Null for ablations without constants."""
    circuit: Scores
    complement: Scores
    """Completeness: the model without the circuit."""
    empty: Scores
    """Everything ablated."""
    random: RandomCircuits | None
    partial: list[Point]
    """By fraction, from 0 to 1."""
    minimality: dict[str, Minimality]
    """By granularity; only under the ablation it was found under, or the first other one whose constants are not to be learned
    for every test; else empty."""
    off_distribution: Split | None


@dataclass(frozen=True)
class EvaluatedCircuit:
    """One circuit: where it comes from, its size, and its scores by ablation."""

    name: str
    """Unique here: the member of a run, or the name of the file."""
    file: str
    sha256: str
    task: str
    """Key of Evaluation.tasks: the task it was found on."""
    found_under: str
    """The ablation it was found under."""
    labels: str
    """`own`, or `random` for a control that was trained on the labels of other pairs (`task.labels`)."""
    seed: str
    kept: dict[str, int]
    parameters_kept: float
    """Share of the parameters of the decoder layers."""
    parameters: dict[str, int]
    """`kept` and `total`."""
    examples: list[dict[str, Any]]
    """What it predicts on a few held-out prompts, as in a run's examples.json, under the ablation of its minimality."""
    control: bool
    """Given as `--control`: found on random labels, or on anything else that ought not to work."""
    ablations: dict[str, UnderAblation]


@dataclass(frozen=True)
class Task:
    """One set of pairs and what the full model does on them."""

    name: str
    sha256: str
    pairs: dict[str, int]
    """By split: train, validation, test, off_distribution."""
    left_out: dict[str, int]
    """`bad`, `unsolved`."""
    full: Scores
    """The full model on the test split."""
    full_off_distribution: Scores | None


@dataclass(frozen=True)
class CurvePoint:
    """A circuit of the best-ranked nodes."""

    fraction: float
    """Of the ranked nodes."""
    size: int
    """Nodes of the level kept; at level `neuron` site neurons."""
    neurons: int
    """Site neurons kept."""
    kl: float
    kl_low: float
    """Lower end of the 95% bootstrap interval over pairs."""
    kl_high: float
    logit_difference: float
    exact_match: float
    faithfulness: float
    """(m(C) - m(empty)) / (m(full) - m(empty)), m the mean logit difference."""
    low: float
    """Of faithfulness: lower end of the 95% bootstrap interval over pairs."""
    high: float
    kl_sd: float
    """Standard deviation over draws, 0 where there is one; the other figures are means over draws."""
    sd: float
    """That of faithfulness."""


@dataclass(frozen=True)
class Curve:
    """Faithfulness against size of one ranking, with the areas of the MIB benchmark (evaluation/mib.py)."""

    method: str
    """`learned` (the strengths of a circuit's gates) or a baseline."""
    circuit: str | None
    """Whose gates; null for baselines."""
    level: str
    """`neuron` (attention and MLP neurons ranked together) or a granularity, of which alone nodes are closed."""
    ranking: str
    """`signed` or `absolute`: by score, or by its absolute value. Figures of the two are not comparable."""
    draws: int
    """Rankings that were drawn at random, of which everything is the mean; 1 for a ranking that is not."""
    cpr: float
    """Area under faithfulness over the fraction kept; 1 is the full model at every size, more is better."""
    cpr_low: float
    """Lower end of the 95% bootstrap interval over pairs."""
    cpr_high: float
    cpr_sd: float
    """Standard deviation over draws, 0 where there is one."""
    cmd: float
    """Area of |1 - faithfulness|; 0 is best."""
    cmd_low: float
    cmd_high: float
    cmd_sd: float
    points: list[CurvePoint]


@dataclass(frozen=True)
class Cell:
    """Circuit of one task on the pairs of another."""

    circuit: str
    task: str
    own: bool
    """Whether it was found on this task."""
    scores: Scores


@dataclass(frozen=True)
class Evaluation:
    """evaluation.json."""

    model: dict[str, str]
    """`path`, and sha256 of `config`, `weights`, `tokenizer`, `adapter`."""
    nodes: dict[str, int]
    """Nodes of the model, by granularity and as `total`."""
    tasks: dict[str, Task]
    circuits: list[EvaluatedCircuit]
    """Controls last."""
    cross: dict[str, list[Cell]]
    """By ablation, every circuit on every task; empty with one task."""
    curves: dict[str, list[Curve]]
    """By ablation; on the test split of the first circuit's task. Of circuits found on other tasks there are none."""
    no_curves: list[str]
    """Curves that were asked for and cannot be had, and why, a sentence each."""
    unfinished: list[str]
    """Ablations that were asked for and not reached yet; empty once all is done."""
    verdict: str
    """The result in plain words."""
    settings: dict[str, Any]
    """Options of the evaluation."""
    command: list[str]
    versions: dict[str, str]
    seconds: float
    format: str = EVALUATION


def save_result(result: Any, path: Path) -> None:
    """Write an Evaluation or a Comparison atomically."""
    write_json(path, asdict(result))


def read_result(path: Path) -> dict[str, Any]:
    """Read evaluation.json or comparison.json. Raises UserError if the file is neither."""
    content = read_json(path, "evaluate or compare again")
    if not isinstance(content, dict) or content.get("format") not in (EVALUATION, COMPARISON):
        raise UserError(f"{path}: not written by `bigcircuit evaluate` or `compare`")
    return content
