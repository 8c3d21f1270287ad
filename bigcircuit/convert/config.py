"""Options of `bigcircuit convert`. Light, so that a typo is answered at once."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigcircuit.config.load import COMMAND_LINE, parse_section, set_dotted
from bigcircuit.config.schema import AblationName, ModelConfig, Section
from bigcircuit.config.yaml_file import read_yaml
from bigcircuit.errors import UserError


class ConversionSettings(Section):
    """Where to write the circuit, what it was found in and under."""

    to: str | None = None
    """Format to write a circuit file of this project in, see the list below; by default the file is of another tool and is read."""
    output: str | None = None
    """File to write, for mib a folder; by default the name of the file that is read, with another ending."""
    ablation: AblationName = "interchange"
    """Ablation that the circuit was found under, which these files do not hold. Edge-Pruning, and `patching` of EAP-IG, are
    `interchange`."""
    config: str | None = None
    """Config file whose section `model` names the model; --model.* override it."""
    model: ModelConfig = ModelConfig()

    @property
    def names_model(self) -> bool:
        """Whether a model is named; files that hold circuits say the widths of theirs."""
        return "model" in self.model_fields_set


def conversion_settings(names: Sequence[str], given: Mapping[str, Any]) -> tuple[Path, ConversionSettings]:
    """Resolve the words of a conversion: the file to read, and the settings.

    given: settings by dotted key. Raises UserError unless there is one name, and for a mistake in a setting or a config file.
    """
    if len(names) != 1:
        raise UserError("convert needs one file at a time: bigcircuit convert edges.json --model.path ./my-llama")
    config = given.get("config")
    raw: dict[str, Any] = {} if config is None else {"model": read_yaml(Path(config)).get("model", {})}
    for key, value in given.items():
        set_dotted(raw, key, value)
    return Path(names[0]), parse_section(raw, config or COMMAND_LINE, ConversionSettings, typed=given)
