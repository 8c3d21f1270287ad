"""Options of `bigcircuit convert`. Light, so that a typo is answered at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigcircuit.config.load import dotted_keys, parse_overrides, read_yaml, set_dotted, validate
from bigcircuit.config.schema import AblationName, ModelConfig, Section
from bigcircuit.errors import UserError
from bigcircuit.evaluation.config import take_options


class ConversionSettings(Section):
    """Where to write the circuit, what it was found in and under."""

    output: str | None = None
    """Circuit file to write; by default the name of the file that is read, with .safetensors."""
    ablation: AblationName = "interchange"
    """What it was found under, which such files do not say. Edge-Pruning, and `patching` of EAP-IG, are `interchange`."""
    config: str | None = None
    """Config file whose section `model` names the model; --model.* come before it."""
    model: ModelConfig = ModelConfig()


def parse_conversion(words: Sequence[str]) -> tuple[Path, ConversionSettings]:
    """The file to read, and the settings. Raises UserError for a mistake in the words after the verb, or in a config file."""
    _, names, rest = take_options(words, Section)
    overrides = parse_overrides(rest, dotted_keys(ConversionSettings))
    if len(names) != 1:
        raise UserError("convert needs one file at a time: bigcircuit convert edges.json --model.path ./my-llama")
    config = overrides.get("config")
    raw: dict[str, Any] = {} if config is None else {"model": read_yaml(Path(str(config))).get("model", {})}
    for key, value in overrides.items():
        set_dotted(raw, key, value)
    return Path(names[0]), validate(raw, str(config or "command line"), ConversionSettings)
