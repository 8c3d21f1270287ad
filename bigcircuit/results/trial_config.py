"""Config with which `prune` reproduces the circuit of a trial. Light."""

from collections.abc import Mapping
from typing import Any

import yaml

from bigcircuit.config.load import override, parse_section
from bigcircuit.config.schema import Config
from bigcircuit.results.sweep import SweepResult, SweepTrial


def as_yaml(sweep: SweepResult, trial: SweepTrial) -> str:
    """Return the config of a trial as YAML for `bigcircuit prune --config`, without settings at their defaults.

    Its output is a folder beside that of the sweep. Raises UserError if sweep.json or trial.json holds an unknown setting.
    """
    base = parse_section(sweep.base, str(sweep.path / "sweep.json"))
    own = {**trial.record.settings, "output": f"{base.output.rstrip('/')}_{trial.folder.name}"}
    config = override(base, own, str(trial.folder / "trial.json"))
    changed = _changed(config.model_dump(mode="json"), Config().model_dump(mode="json"))
    return yaml.safe_dump(changed, sort_keys=False, allow_unicode=True, width=1000)


def config_comments(sweep: SweepResult, trial: SweepTrial) -> list[str]:
    """Return comment lines for that config: the trial's scores, its circuit file, and what `prune` does not reproduce."""
    kept, kl = trial.point
    score = trial.row["scores"]["kl"]
    found = [
        f"trial {trial.number} of {sweep.path}: {kept} of {trial.result['nodes']['total']} neurons, held-out KL "
        f"{kl:.4g} nats, 95% interval {score['low']:.4g} to {score['high']:.4g}",
        f"its circuit: {trial.circuit}",
    ]
    if trial.record.drawn != trial.record.settings:
        found.append("population-based training changed its settings on the way; these are the last ones")
    return found


def _changed(values: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested values that differ from their defaults."""
    found = {}
    for key, value in values.items():
        usual = default.get(key)
        if isinstance(value, Mapping) and isinstance(usual, Mapping) and usual:
            if inner := _changed(value, usual):
                found[key] = inner
        elif value != usual:
            found[key] = value
    return found
