"""Make a validated Config of a YAML file and dotted overrides; every mistake becomes one helpful line."""

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from bigcircuit.config.plain import shown
from bigcircuit.config.schema import MEMBER_KEYS, Config
from bigcircuit.config.shipped import preset_file
from bigcircuit.config.words import NAMES, VALUES
from bigcircuit.config.yaml_file import merge, read_yaml
from bigcircuit.errors import UserError
from bigcircuit.gates.parametrisation import automatic, has_exact_sizes
from bigcircuit.model.granularity import LEAVES, NODE_NAMES

COMMAND_LINE = "command line"
"""Source of settings that are typed."""


def load(path: str | Path | None, overrides: Mapping[str, Any] | None = None, *, preset: str | None = None) -> Config:
    """Read a config file, apply dotted overrides, validate. Raises UserError naming file and key.

    preset: name of settings that come with the package, such as `paper`, under those of the file.
    """
    raw = read_yaml(preset_file(preset)) if preset else {}
    merge(raw, read_yaml(Path(path)) if path else {})
    for key, value in (overrides or {}).items():
        set_dotted(raw, key, value)
    config = parse_section(raw, str(path or COMMAND_LINE), typed=overrides or {})
    members(config)
    return config


def parse_section(
    raw: Mapping[str, Any],
    source: str,
    kind: type[BaseModel] = Config,
    prefix: str = "",
    typed: Collection[str] = (),
) -> Any:
    """Build the Config, or another section, from nested plain data.

    typed: dotted keys that are not from `source` but from the command line. Raises UserError naming the source and the key.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        text = _describe(error, prefix, kind)
        raise UserError(f"{COMMAND_LINE if any(key in text for key in typed) else source}: {text}") from error


def members(config: Config) -> list[Config]:
    """One Config a member of the population, with its parametrisation chosen.

    Raises UserError for a key that members must share, or a parametrisation that does not suit them.
    """
    if not config.population.members:
        seeds = range(config.train.seed, config.train.seed + config.population.seeds)
        return _parametrised([override(config, {"train.seed": seed}, "population.seeds") for seed in seeds])
    built = []
    for index, overrides in enumerate(config.population.members):
        source = f"population.members[{index}]"
        for key in overrides:
            check_key(key, source)
            if not key.startswith(MEMBER_KEYS[:2]) and key not in MEMBER_KEYS:
                raise UserError(f"{source}: {key} is shared by all members of a population; run it separately")
        built.append(override(config, overrides, source))
    return _parametrised(built)


def _parametrised(configs: list[Config]) -> list[Config]:
    """Choose the parametrisation where it is `auto` and see that all members can have it."""
    penalised = any(weight for config in configs for _, weight in config.penalty)
    asked = {tuple(config.target.sizes()) for config in configs}
    name = configs[0].gates.parametrisation
    if name == "auto":
        name = automatic(exact_sizes=len(asked) == 1 and () not in asked and not penalised)
    if configs[0].gates.sampled_sizes and not has_exact_sizes(name):
        raise UserError(
            f"gates.sampled_sizes is true but gates.parametrisation is {name}; ask for sizes by target.* and set no penalty"
        )
    if has_exact_sizes(name):
        if () in asked:
            raise UserError(
                f"gates.parametrisation is {name} but no size is asked for; set target.total or another target"
            )
        if penalised:
            raise UserError(f"gates.parametrisation is {name} but a penalty is set; sizes are asked for by target.*")
        if len(asked) > 1:
            raise UserError(
                f"gates.parametrisation is {name} but members ask for sizes of different granularities; give all the same "
                "target.* keys"
            )
    return [override(config, {"gates.parametrisation": name}, "gates.parametrisation") for config in configs]


def check_objective(configs: Sequence[Config]) -> None:
    """Raises UserError if a member has nothing that closes its gates, nothing that keeps them open, or no ranking without updates.

    There is no default size, because a penalty of 0 among others, in a sweep or a population, would then be a method of its own.
    """
    for index, config in enumerate(configs):
        member = f"member {index}: " if len(configs) > 1 else ""
        if config.train.steps == 0:
            _check_ranks(config)
        elif not config.train.kl and not config.train.hinge and config.train.loss is None:
            raise UserError(
                f"{member}nothing asks for the behaviour: train.kl and train.hinge are 0 and train.loss is not set; set train.kl "
                "to 1, or another of them"
            )
        if not config.target.sizes() and not any(weight for _, weight in config.penalty):
            raise UserError(
                f"{member}nothing asks for a small circuit: no target and no penalty is set; set target.total 0.1 for a tenth of "
                "the neurons, or another target.* or penalty.*"
            )


def idle_penalties(config: Config) -> list[str]:
    """List the keys of penalties that are set and do not act, because the size of what they close is asked for."""
    return [f"penalty.{name}" for name, weight in config.penalty if weight and is_idle(name, config)]


def is_idle(name: str, config: Config) -> bool:
    """Return whether the penalty of a granularity does not act, because targets ask for the size of what it closes."""
    targets = config.target.sizes()
    return name in targets or "total" in targets


def penalty_note(configs: Sequence[Config]) -> list[str]:
    """Say in a line which penalties of members do not act; nothing if all do."""
    idle = dict.fromkeys(key for config in configs for key in idle_penalties(config))
    return [f"{', '.join(idle)}: without effect where a target asks for the size; leave one out"] if idle else []


def _check_ranks(config: Config) -> None:
    """Raises UserError if a member without updates has no ranking, or sizes of nodes that the ranking does not order."""
    if config.gates.warm_start == "none" or not config.target.sizes():
        raise UserError(
            "train.steps is 0, so nothing is trained: set gates.warm_start integrated_gradients and target.total to cut a "
            "ranking, or train.steps 600"
        )
    for name in config.target.sizes():
        if name not in ("total", *LEAVES.values()):
            raise UserError(
                f"train.steps is 0 and gates.warm_start ranks neurons, not {NODE_NAMES[name]}: set target.total in place of "
                f"target.{name}, or train.steps 600"
            )


def override(config: Config, overrides: Mapping[str, Any], source: str) -> Config:
    """The config with dotted keys changed. Raises UserError naming `source` and the key."""
    raw = config.model_dump()
    for key, value in overrides.items():
        set_dotted(raw, key, value)
    return parse_section(raw, source)


def check_key(key: str, source: str) -> None:
    """Raises UserError unless `key` is a dotted key of a config."""
    if key not in dotted_keys():
        raise UserError(f"{source}: {key} is not a setting{nearest(key, dotted_keys())}")


def setting_fields(section: type[BaseModel] = Config, prefix: str = "") -> dict[str, FieldInfo]:
    """Every leaf setting: dotted key -> pydantic's record of its type, default and description."""
    fields: dict[str, FieldInfo] = {}
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            fields |= setting_fields(kind, f"{prefix}{name}.")
        else:
            fields[prefix + name] = info
    return fields


def dotted_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every leaf setting as a dotted key."""
    return list(setting_fields(section, prefix))


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as (dotted key, value)."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def set_dotted(raw: dict[str, Any], dotted: str, value: Any) -> None:
    """Set a nested value by its dotted key. Raises UserError where a section is something else."""
    *sections, name = dotted.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise UserError(f"{section} must be a section with keys, not {shown(raw)}")
    raw[name] = value


def _describe(error: ValidationError, prefix: str, kind: type[BaseModel]) -> str:
    """The first problem pydantic found, as one line; the rest are counted."""
    problems = error.errors(include_url=False)
    first = problems[0]
    key = prefix + ".".join(str(part) for part in first["loc"])
    if key == "sweep":
        text = "the section sweep is for `bigcircuit sweep`; leave it out to prune with the rest"
    elif first["type"] == "extra_forbidden":
        text = f"{key[:100]} is not a setting{nearest(key, _all_keys(kind, prefix))}"
    elif first["type"] == "not_plain":
        text = f"{key} {first['msg']}"
    elif first["type"] in _SHAPES:
        text = f"{key} is {_SHAPES[first['type']]}, not {shown(first['input'])}"
    elif first["type"] in ("model_type", "model_attributes_type"):
        text = f"{key} is a section and takes settings, not {shown(first['input'])}{nearest(key, _all_keys(kind, prefix), '')}"
    elif first["type"] == "value_error":
        text = str(first["ctx"]["error"])
    else:
        text = f"{key}: {first['msg'].lower()}, not {shown(first['input'])}{_called(first)}"
    others = len(problems) - 1
    return text + (f" (and {others} more)" if others else "")


_SHAPES = {"tuple_type": "a list and is written [a, b]", "dict_type": "a mapping and is written {a: b}"}
"""Type of a problem -> what the setting takes."""


def _called(problem: Any) -> str:
    """`; did you mean X?` where a choice was given by another name that people use; else nothing."""
    name = VALUES.get(problem["input"]) if isinstance(problem["input"], str) else None
    return f"; did you mean {name}?" if name and f"'{name}'" in problem["msg"] else ""


def _all_keys(kind: type[BaseModel], prefix: str) -> list[str]:
    keys = dotted_keys(kind, prefix)
    return sorted({key.rsplit(".", depth)[0] for key in keys for depth in range(key.count(".") + 1)})


def nearest(key: str, known: Sequence[str], otherwise: str = "; `--help all` lists them") -> str:
    """`; did you mean X?`: the setting that people call so, else keys of the same last part elsewhere, else the closest key.

    otherwise: what to say where nothing is near.
    """
    called = NAMES.get(key) or NAMES.get(key.rsplit(".", 1)[-1])
    if called in known:
        return f"; did you mean {called}?"
    last: dict[str, list[str]] = {}
    for name in known:
        last.setdefault(name.rsplit(".", 1)[-1], []).append(name)
    part = key.rsplit(".", 1)[-1]
    nearest = last.get(part) or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not nearest:
        nearest = [name for one in difflib.get_close_matches(part, last, n=1, cutoff=0.6) for name in last[one]]
    return f"; did you mean {' or '.join(nearest)}?" if nearest else otherwise
