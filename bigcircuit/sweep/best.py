"""`bigcircuit sweep best`: print the config of the best trial within a bound on KL or size. Loads no torch."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from bigcircuit.errors import UserError
from bigcircuit.results.sweep import SweepResult, SweepTrial, read_sweep
from bigcircuit.results.trial_config import as_yaml, config_comments
from bigcircuit.runtime.console import PlainConsole


def show_best(names: Sequence[str], bounds: Mapping[str, float], console: PlainConsole) -> None:
    """Print, as YAML, the config of the best trial within a bound.

    names: the sweep's folder; bounds: `kl`, the most held-out KL in nats, or `neurons`, the most neurons kept. Raises UserError
    unless there are one folder and one bound, and where no trial is within the bound.
    """
    if len(names) != 1:
        raise UserError(f"sweep best needs one sweep's folder, not {len(names)}: bigcircuit sweep best runs/s --kl 0.1")
    if len(bounds) != 1 or math.isnan(*bounds.values()):
        raise UserError(
            "sweep best needs one bound, --kl NATS or --neurons COUNT: bigcircuit sweep best runs/s --kl 0.1"
        )
    folder, [(option, bound)] = Path(names[0]), bounds.items()
    sweep = read_sweep(folder)
    if not sweep.finished:
        raise UserError(f"{folder}: no trial has finished, of {len(sweep.trials)} that have begun")
    trial = smallest(sweep, bound) if option == "kl" else closest(sweep, bound)
    lines = [*config_comments(sweep, trial), "save this as a file and run: bigcircuit prune --config FILE"]
    console.out("\n".join([*(f"# {line}" for line in lines), as_yaml(sweep, trial)]), end="", highlight=False)


def smallest(sweep: SweepResult, kl: float) -> SweepTrial:
    """Return the finished trial with the fewest neurons among those with a held-out KL up to `kl`. Raises UserError for none."""
    fitting = [trial for trial in sweep.finished if trial.point[1] <= kl]
    if not fitting:
        raise UserError(_nearest(sweep, f"a held-out KL of at most {kl:g}", sweep.front[-1]))
    return min(fitting, key=lambda trial: trial.point)


def closest(sweep: SweepResult, neurons: float) -> SweepTrial:
    """Return the finished trial with the lowest held-out KL among those with up to `neurons`. Raises UserError for none."""
    fitting = [trial for trial in sweep.finished if trial.point[0] <= neurons]
    if not fitting:
        raise UserError(_nearest(sweep, f"at most {neurons:g} neurons", sweep.front[0]))
    return min(fitting, key=lambda trial: trial.point[::-1])


def _nearest(sweep: SweepResult, bound: str, trial: SweepTrial) -> str:
    """Return the error that no trial is within a bound, with the nearest trial."""
    neurons, kl = trial.point
    return (
        f"{sweep.path}: none of {len(sweep.finished)} finished trials has {bound}; the nearest is trial {trial.number} with "
        f"{neurons} neurons and a KL of {kl:.4g}"
    )
