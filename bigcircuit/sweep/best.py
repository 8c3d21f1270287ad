"""`bigcircuit sweep best`: the config of the trial that suits best. Loads no torch."""

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bigcircuit.errors import UserError
from bigcircuit.results.sweep import SweepResult, SweepTrial, read_sweep
from bigcircuit.results.trial_config import as_yaml, notes

USAGE = """usage: bigcircuit sweep best FOLDER --kl 0.1        the fewest neurons with a held-out KL of at most 0.1 nats
       bigcircuit sweep best FOLDER --neurons 200   the lowest held-out KL with at most 200 neurons
prints a config for `bigcircuit prune --config FILE`"""
_KINDS = {"--kl": float, "--neurons": int}


def show_best(words: Sequence[str], console: Console) -> None:
    """Print, as YAML, the config of the best trial within a bound. words: the folder, and --kl or --neurons.

    Raises UserError for other words, and where no trial is within the bound.
    """
    if "--help" in words or "-h" in words:
        console.print(USAGE, markup=False)
        raise SystemExit(0)
    folder, option, bound = _asked(words)
    sweep = read_sweep(folder)
    if not sweep.finished:
        raise UserError(f"{folder}: no trial has finished, of {len(sweep.trials)} that have begun")
    trial = smallest(sweep, bound) if option == "--kl" else closest(sweep, bound)
    lines = [*notes(sweep, trial), "save this as a file and run: bigcircuit prune --config FILE"]
    console.out("\n".join([*(f"# {line}" for line in lines), as_yaml(sweep, trial)]), end="", highlight=False)


def _asked(words: Sequence[str]) -> tuple[Path, str, float]:
    """The folder, the option and its value. Raises UserError."""
    names, bounds, left = [], {}, list(words)
    while left:
        option, has_value, text = left.pop(0).partition("=")
        if not option.startswith("--"):
            names.append(option + has_value + text)
            continue
        if option not in _KINDS:
            raise UserError(f"sweep best has no option {option}; it has --kl NATS and --neurons COUNT")
        text = text if has_value else left.pop(0) if left else ""
        try:
            bounds[option] = _KINDS[option](text)
        except ValueError as error:
            raise UserError(f"{option} {text}: give a {'number of nats' if option == '--kl' else 'count'}") from error
    if len(names) != 1:
        raise UserError(f"sweep best needs one sweep's folder, not {len(names)}: bigcircuit sweep best runs/s --kl 0.1")
    if len(bounds) != 1 or math.isnan(*bounds.values()):
        raise UserError(
            "sweep best needs one bound, --kl NATS or --neurons COUNT: bigcircuit sweep best runs/s --kl 0.1"
        )
    return Path(names[0]), *bounds.popitem()


def smallest(sweep: SweepResult, kl: float) -> SweepTrial:
    """The finished trial with the fewest neurons among those whose held-out KL is at most `kl`. Raises UserError for none."""
    fitting = [trial for trial in sweep.finished if trial.point[1] <= kl]
    if not fitting:
        raise UserError(_nearest(sweep, f"a held-out KL of at most {kl:g}", sweep.front[-1]))
    return min(fitting, key=lambda trial: trial.point)


def closest(sweep: SweepResult, neurons: float) -> SweepTrial:
    """The finished trial of the lowest held-out KL among those that keep at most so many neurons. Raises UserError for none."""
    fitting = [trial for trial in sweep.finished if trial.point[0] <= neurons]
    if not fitting:
        raise UserError(_nearest(sweep, f"at most {neurons:g} neurons", sweep.front[0]))
    return min(fitting, key=lambda trial: trial.point[::-1])


def _nearest(sweep: SweepResult, bound: str, trial: SweepTrial) -> str:
    neurons, kl = trial.point
    return (
        f"{sweep.path}: none of {len(sweep.finished)} finished trials has {bound}; the nearest is trial {trial.number} with "
        f"{neurons} neurons and a KL of {kl:.4g}"
    )
