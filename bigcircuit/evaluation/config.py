"""Options of `bigcircuit evaluate` beside those of a config. Light, so that a typo is answered at once."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, field_validator

from bigcircuit.ablation.kinds import KINDS
from bigcircuit.config.plain import shown
from bigcircuit.config.schema import Count, Fraction, Positive, Section
from bigcircuit.errors import UserError
from bigcircuit.model.granularity import GRANULARITIES


def _listed(value: Any) -> Any:
    """`a,b` as a list; nothing as an empty one."""
    if isinstance(value, (tuple, list)):
        return value
    return [] if value is None else [word.strip() for word in str(value).split(",") if word.strip()]


Names = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class EvaluationSettings(Section):
    """What is measured, and how closely."""

    ablations: Names = Field(
        (), description=f"Any of {', '.join(KINDS)}, or all; by default those the circuits were found under."
    )
    draws: Annotated[int, Field(ge=0, le=100_000)] = 100
    """Random circuits of the same shape; 0 for none."""
    fractions: Annotated[tuple[Fraction, ...], BeforeValidator(_listed)] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    """Shares of the complement that are opened beside the circuit (partial ablation)."""
    partial_draws: Annotated[int, Field(ge=0, le=100_000)] = 5
    """Random choices at each of these fractions; 0 leaves partial ablation out."""
    groups: Count = 256
    """Most tests of minimality a granularity: where more nodes are kept, neighbours are closed together. 0 for none."""
    tolerance: Annotated[float, Field(ge=0)] = 1e-4
    """A node is necessary if KL rises without it by more than this, in nats, and the interval of the rise is above 0."""
    methods: Names = ("all",)
    """Rankings whose curves are drawn: learned, baselines such as integrated_gradients or random (a name that is not known lists
    them), all, or none."""
    levels: Names = ("neuron", "head", "expert")
    """What the curves rank: neuron (all site neurons together) or granularities; the default as far as the model has them."""
    ranking: str = "signed"
    """`signed` ranks by score, `absolute` by its absolute value: name it beside every area."""
    tasks: Names = ()
    """Configs of other tasks, for the matrix of every circuit on every task."""
    control: Names = ()
    """Runs or circuits that ought not to work, such as one found on random labels (`task.labels random`)."""
    metrics: Names = ()
    """Scores of your own: `module:function`, of (logits of a circuit [S, V], batch), one number a pair, [B]; or names that
    installed packages declare."""
    at_once: Positive = 16
    """Circuits that share one pass over the model; fewer need less memory."""
    any_model: bool = False
    """Allow a model of the same widths that is not the one a circuit was found in, and held-out pairs that it was trained on."""
    output: str | None = None
    """Folder for evaluation.json; by default the folder of the first run or circuit."""
    seed: Count = 0
    """Seed of the random circuits."""

    @field_validator("levels")
    @classmethod
    def _levels(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        known = ("neuron", *GRANULARITIES)
        for name in names:
            if name not in known:
                raise ValueError(f"{name} is not known; use any of {', '.join(known)}")
        return tuple(dict.fromkeys(names))

    @field_validator("ablations", "methods")
    @classmethod
    def _known(cls, names: tuple[str, ...], info: Any) -> tuple[str, ...]:
        if names == ("none",) and info.field_name == "methods":
            return ()
        return some(names, tuple(KINDS) if info.field_name == "ablations" else _methods())

    @property
    def rankings(self) -> tuple[str, ...]:
        """The methods, each by its name."""
        return some(self.methods, _methods())

    @field_validator("ranking")
    @classmethod
    def _ranking(cls, name: str) -> str:
        if name not in ("signed", "absolute"):
            raise ValueError(f"{name} is not known; use signed or absolute")
        return name


class ComparisonSettings(Section):
    """What to keep of a comparison."""

    save: Names = ()
    """Any of union, intersection and difference (what the first circuit has and no other has), or all, as new circuit files."""
    output: str | None = None
    """Folder for comparison.json and the new circuits; by default that of the first run, or of the first circuit file."""

    @field_validator("save")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        from bigcircuit.circuit.overlap import OPERATIONS  # not needed for a typo in anything else

        return some(names, tuple(OPERATIONS))


def _methods() -> tuple[str, ...]:
    from bigcircuit.attribution.baselines import BASELINES  # not needed for a typo in anything else

    return "learned", *BASELINES


def some(names: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The names, each once, or all that are known where `all` is among them. Raises ValueError for one that is not."""
    for name in names:
        if name not in (*known, "all"):
            raise ValueError(f"{name} is not known; use any of {', '.join(known)}, or all")
    return tuple(dict.fromkeys(known if "all" in names else names))


def validated(settings: type[Section], options: Mapping[str, Any], prefix: str = "") -> Any:
    """The options as an object. prefix: of their names on the command line. Raises UserError naming the first that is wrong."""
    try:
        return settings.model_validate(options)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        reason = str(first["ctx"]["error"]) if first["type"] == "value_error" else first["msg"]
        reason += "" if first["type"] in ("value_error", "not_plain") else f", not {shown(first['input'])}"
        raise UserError("".join(f"--{prefix}{key}: " for key in first["loc"][:1]) + reason) from error
