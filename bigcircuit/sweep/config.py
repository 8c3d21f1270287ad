"""Section `sweep` of a sweep's config: what is searched, how, and on which machines.

The rest of the file is an ordinary config that all trials start from. Light, so that a mistake is reported at once.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from bigcircuit.config.load import (
    COMMAND_LINE,
    check_key,
    check_objective,
    flatten,
    is_idle,
    members,
    override,
    parse_section,
    set_dotted,
)
from bigcircuit.config.plain import shown
from bigcircuit.config.schema import MEMBER_KEYS, Config, Positive, Section
from bigcircuit.config.yaml_file import read_yaml
from bigcircuit.errors import UserError
from bigcircuit.io.run_dir import free_path

_SWEEP_WIDE = ("output", "deepspeed", "population.", "tracking.")
"""Prefixes of settings that belong to the whole sweep and cannot be searched."""
_TRIAL_KEYS = ("output", "gates.parametrisation")
"""Keys, beside those of members, in which trials on shared data may differ."""


class Range(Section):
    """Range of numbers to draw from: exactly one of these fields, as [lowest, highest]."""

    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = None
    """Whole numbers, both ends included."""
    log_integer: tuple[int, int] | None = None

    @property
    def kind_and_ends(self) -> tuple[str, tuple[float, float]]:
        """Name of the field that is set, and its value."""
        return next((name, ends) for name, ends in self if ends is not None)

    @model_validator(mode="after")
    def _one(self) -> "Range":
        given = [(name, ends) for name, ends in self if ends is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(Range.model_fields)}")
        name, (low, high) = given[0]
        if low >= high or (name.startswith("log") and low <= 0):
            raise ValueError(f"{name} [{low:g}, {high:g}]: give the lowest first{', above 0' if low <= 0 else ''}")
        return self


Domain = Range | tuple[Any, ...]


class SweepSettings(Section):
    """Search over settings: what is drawn, by which method, and the workers that train the trials."""

    space: dict[str, Domain]
    """Dotted config key -> a list of values, or {uniform: [a, b]}, {log_uniform: ...}, {integer: ...}, {log_integer: ...}."""
    search: Literal["grid", "random", "optuna"] = "random"
    """`grid`: every combination of lists; `random`: independent draws; `optuna`: draws that learn from finished
    trials which settings give few neurons and a low KL together."""
    trials: Annotated[int, Field(ge=1, le=100_000)] = 16
    """Number of draws, for `random` and `optuna`."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of the draws."""
    scheduler: Literal["none", "asha", "pbt"] = "none"
    """`asha` stops the worse trials early; `pbt` (population-based training) replaces their state by that of better trials, with
    settings changed a little."""
    metric: Literal["objective", "kl", "neurons"] = "objective"
    """Score by which the scheduler compares trials, on the validation pairs: the loss with full penalties, KL, or size."""
    grace: Positive = 2
    """Validations of every trial before `asha` may stop it, and between two changes of `pbt`."""
    reduction: Annotated[int, Field(ge=2)] = 2
    """`asha` continues one trial in this many at each of its rungs."""
    slots: Positive = 8
    """Trials that train at once on one copy of the model."""
    workers: Positive | None = None
    """Copies of the model; by default as many as the trials need and the machines can hold."""
    ranks: Positive = 1
    """Processes of one copy, its weights divided between them under ZeRO-3."""
    cpus: Positive | None = None
    """CPU cores, and threads, per process; by default one, or, without GPUs on a single machine, OMP_NUM_THREADS where it is set,
    else an equal share of all cores."""
    gpus: Annotated[float, Field(ge=0)] | None = None
    """GPUs per process; by default one where there are any."""

    @field_validator("space", mode="before")
    @classmethod
    def _flat(cls, value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping) or not value:
            raise ValueError("sweep.space: name at least one setting to search, such as penalty.head: [1, 10]")
        domains = list(_domains(value))
        names = [key for key, _ in domains]
        if twice := [key for key in names if names.count(key) > 1]:
            raise ValueError(f"sweep.space: {twice[0]} is given twice; remove one")
        return dict(domains)

    @model_validator(mode="after")
    def _searchable(self) -> "SweepSettings":
        if (self.search, self.scheduler) == ("optuna", "pbt"):
            raise ValueError(
                "sweep.search is optuna and sweep.scheduler is pbt, which would change what optuna learns from; use one of them"
            )
        grid = math.prod(len(domain) for domain in self.space.values() if isinstance(domain, tuple))
        if self.search == "grid" and grid > 100_000:
            raise ValueError(f"sweep.space has {grid:,} combinations; list fewer values, or set sweep.search to random")
        for key, domain in self.space.items():
            check_key(key, "sweep.space")
            if key.startswith(_SWEEP_WIDE):
                raise ValueError(f"sweep.space: {key} is one for all trials; set it beside the section sweep")
            if domain == ():
                raise ValueError(f"sweep.space.{key} is an empty list; name values")
            if self.search == "grid" and isinstance(domain, Range):
                raise ValueError(
                    f"sweep.space.{key} is a range and sweep.search is grid; list its values or search otherwise"
                )
            if self.scheduler == "pbt" and not key.startswith(MEMBER_KEYS[:2]) and key not in MEMBER_KEYS:
                raise ValueError(f"sweep.space: {key} cannot change while a trial runs; leave it out or do without pbt")
        return self


def _domains(value: Mapping[str, Any], prefix: str = "") -> Any:
    for key, inner in value.items():
        if not isinstance(key, str):
            raise ValueError(f"sweep.space: {prefix}{key} is no text, so not a setting")
        if isinstance(inner, Mapping) and not set(inner) <= set(Range.model_fields):
            yield from _domains(inner, f"{prefix}{key}.")
        elif isinstance(inner, Mapping):
            yield prefix + key, parse_section(inner, f"sweep.space.{prefix}{key}", Range)
        elif isinstance(inner, (list, tuple, Range)):
            yield prefix + key, inner
        else:
            raise ValueError(
                f"sweep.space.{prefix}{key} is {shown(inner)}; give a list or a range, or set it outside of space"
            )


class Sweep(NamedTuple):
    """Validated config of a sweep."""

    config: Config
    """Config that all trials start from; its output is the folder of the sweep."""
    settings: SweepSettings

    def fresh(self) -> "Sweep":
        """Return the same sweep with a free output folder: the one it names or one beside."""
        return self._replace(config=override(self.config, {"output": str(free_path(self.config.output))}, "--fresh"))

    def trial_config(self, settings: Mapping[str, Any], number: int) -> Config:
        """Return the config of one trial as a run of its own. Raises UserError if the settings do not fit together."""
        own = {**settings, "output": str(Path(self.config.output) / "trials" / f"{number:03d}")}
        configs = members(override(self.config, own, f"trial {number}"))
        check_objective(configs)
        return configs[0]


def load_sweep(path: str | Path | None, overrides: Mapping[str, Any]) -> Sweep:
    """Read a sweep's config with dotted overrides. Raises UserError naming file and key."""
    source = str(path or COMMAND_LINE)
    raw = read_yaml(Path(path)) if path else {}
    for key, value in overrides.items():
        set_dotted(raw, key, value)
    search = raw.pop("sweep", None)
    if not isinstance(search, dict):
        raise UserError(f"{source}: no section sweep; see configs/sweeps/penalties.yaml for an example")
    config = parse_section(raw, source, typed=overrides)
    if config.tracking.trackers:
        raise UserError(
            f"{source}: tracking.trackers is set, and a sweep feeds none; leave it out: each trial has its metrics.jsonl"
        )
    if config.population.members or config.population.seeds > 1:
        raise UserError(f"{source}: population is set; a sweep makes its own: search train.seed or the members' keys")
    if not config.train.steps:
        raise UserError(f"{source}: train.steps is 0; a sweep trains its trials, so set it to 600, say")
    settings = parse_section({"space": {}} | search, source, SweepSettings, "sweep.", overrides)
    if config.train.weight_lr or "train.weight_lr" in settings.space:
        raise UserError(
            f"{source}: train.weight_lr is set, and trials share frozen weights; leave it out, or use prune"
        )
    _check_penalties_act(config, settings, source)
    return Sweep(config, settings)


def _check_penalties_act(config: Config, settings: SweepSettings, source: str) -> None:
    """Raise UserError for a penalty that is searched though targets of the base config keep it from acting in every trial."""
    searched = [key for key in settings.space if key.startswith("penalty.")]
    idle = [key for key in searched if is_idle(key.removeprefix("penalty."), config)]
    if idle and not any(key.startswith("target.") for key in settings.space):
        raise UserError(
            f"{source}: sweep.space has {idle[0]}, which is without effect because a target asks for the size "
            f"(target.{', target.'.join(config.target.sizes())}); leave one out"
        )


def shared_settings(config: Config) -> str:
    """Return, as text, the settings in which trials must agree to share model and pairs: all but those of members."""
    values = dict(flatten(config.model_dump(mode="json")))
    own = [key for key in values if key.startswith(MEMBER_KEYS[:2]) or key in (*MEMBER_KEYS, *_TRIAL_KEYS)]
    return repr(sorted((key, repr(value)) for key, value in values.items() if key not in own))


def gate_settings(config: Config) -> tuple[str, ...]:
    """Return the settings in which members must agree, beside `shared_settings`, to share a pass."""
    return config.gates.parametrisation, *config.target.sizes()


def shares_data(settings: SweepSettings) -> bool:
    """Return whether all trials have the model and the pairs of the base config."""
    return not any(key.startswith(("task.", "model.")) for key in settings.space)


def is_known_ahead(settings: SweepSettings) -> bool:
    """Return whether all trials are known before the first begins, and none is stopped early."""
    return settings.search != "optuna" and settings.scheduler == "none"
