"""From a YAML file and dotted overrides to a validated Config; every mistake becomes one helpful line."""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from bigcircuit.config.schema import MEMBER_KEYS, Config
from bigcircuit.errors import UserError
from bigcircuit.gates.parametrisation import automatic, has_exact_sizes


def load(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a config file, apply dotted overrides, validate. Raises UserError naming file and key."""
    raw = read_yaml(Path(path)) if path else {}
    for key, value in (overrides or {}).items():
        set_dotted(raw, key, value)
    config = validate(raw, str(path or "command line"))
    members(config)
    return config


def validate(raw: Mapping[str, Any], source: str, kind: type[BaseModel] = Config, prefix: str = "") -> Any:
    """Build the Config, or another section, from nested plain data. Raises UserError naming `source` and the key."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{source}: {_describe(error, prefix, kind)}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file as nested data, on top of the files its `extends` names (relative to itself, later ones win)."""
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such config file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}{where}: not valid YAML ({getattr(error, 'problem', None) or 'see the file'})"
        ) from error
    if raw is None:
        raise UserError(f"{path}: the config file is empty; see configs/quickstart.yaml for an example")
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a config is a mapping of sections, not a {type(raw).__name__}")
    bases = raw.pop("extends", [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        _merge(merged, read_yaml(path.parent / base))
    _merge(merged, raw)
    return merged


def parse_overrides(
    arguments: Sequence[str], known: Sequence[str] = (), open_ended: tuple[str, ...] = ("task.columns.",)
) -> dict[str, Any]:
    """`--section.field value` or `--section.field=value` words -> dotted key to value, values read as YAML.

    known: the keys there are, those of a config by default; open_ended: sections whose keys anyone may name.
    """
    known = known or dotted_keys()
    overrides: dict[str, Any] = {}
    words = list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise UserError(f"{word!r} is not an option; options look like --train.steps 500")
        key, has_value, text = word[2:].partition("=")
        key = key.replace("-", "_")
        if key not in known and not key.startswith(open_ended):
            raise UserError(f"--{key} is not a setting{_nearest(key, known)}")
        if not has_value:
            if not words:
                raise UserError(f"--{key} needs a value")
            text = words.pop(0)
        overrides[key] = _scalar(key, text)
    return overrides


def _scalar(key: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--{key} {text!r} is not a valid value") from error


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


def override(config: Config, overrides: Mapping[str, Any], source: str) -> Config:
    """The config with dotted keys changed. Raises UserError naming `source` and the key."""
    raw = config.model_dump()
    for key, value in overrides.items():
        set_dotted(raw, key, value)
    return validate(raw, source)


def check_key(key: str, source: str) -> None:
    """Raises UserError unless `key` is a dotted key of a config."""
    if key not in dotted_keys():
        raise UserError(f"{source}: {key} is not a setting{_nearest(key, dotted_keys())}")


def dotted_keys(section: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Every leaf setting as a dotted key."""
    keys: list[str] = []
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys += dotted_keys(kind, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


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
            raise UserError(f"{section} must be a section with keys, not {raw!r}")
    raw[name] = value


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _describe(error: ValidationError, prefix: str, kind: type[BaseModel]) -> str:
    """The first problem pydantic found, as one line; the rest are counted."""
    problems = error.errors(include_url=False)
    first = problems[0]
    key = prefix + ".".join(str(part) for part in first["loc"])
    if key == "sweep":
        text = "the section sweep is for `bigcircuit sweep`; leave it out to prune with the rest"
    elif first["type"] == "extra_forbidden":
        text = f"{key} is not a setting{_nearest(key, _all_keys(kind, prefix))}"
    elif first["type"] == "value_error":
        text = str(first["ctx"]["error"])
    else:
        text = f"{key}: {first['msg'].lower()}, not {json.dumps(first['input'], default=str)[:60]}"
    others = len(problems) - 1
    return text + (f" (and {others} more)" if others else "")


def _all_keys(kind: type[BaseModel], prefix: str) -> list[str]:
    keys = dotted_keys(kind, prefix)
    return sorted({key.rsplit(".", depth)[0] for key in keys for depth in range(key.count(".") + 1)})


def _nearest(key: str, known: Sequence[str]) -> str:
    """`; did you mean X?`: the keys of the same last part elsewhere, else the closest whole key, else the closest last part."""
    last: dict[str, list[str]] = {}
    for name in known:
        last.setdefault(name.rsplit(".", 1)[-1], []).append(name)
    part = key.rsplit(".", 1)[-1]
    nearest = last.get(part) or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not nearest:
        nearest = [name for one in difflib.get_close_matches(part, last, n=1, cutoff=0.6) for name in last[one]]
    return f"; did you mean {' or '.join(nearest)}?" if nearest else "; `--help` lists them all"
