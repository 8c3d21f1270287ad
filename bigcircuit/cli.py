"""`bigcircuit <verb>`: parse, run, and turn what the user can mend into one line and an exit code."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from bigcircuit.config.help import show_settings
from bigcircuit.config.load import load, parse_overrides
from bigcircuit.config.schema import Config, Section
from bigcircuit.errors import ReportedError, UserError

USAGE = """usage: bigcircuit VERB [--config FILE] [--section.field VALUE ...]

  prune   find circuits and write a run folder   [--fresh: start over in a new folder]
  check   validate config and pairs, print sites, gates and memory per rank, and what would fit; loads no weights
          [--ranks N, --memory GIB: of the GPUs it is to run on, instead of one rank here]
  evaluate RUN_OR_CIRCUIT ...   is it right? faithfulness, completeness, minimality, random circuits, baselines; writes
          evaluation.json   [--ablations interchange,zero,mean,mean_per_position,optimal | all] [--draws 100]
          [--tasks OTHER.yaml,...] [--control RUN] [--output FOLDER]
  compare RUN_OR_CIRCUIT ...    what circuits share; union, intersection and difference as new circuits; loads no weights
          [--save union,intersection,difference] [--output FOLDER]
  convert FILE   a circuit of EAP-IG, the MIB benchmark or Edge-Pruning as a circuit file for all of these; loads no weights
          --model.path MODEL [--ablation interchange] [--output FILE.safetensors]
  report RUN_OR_CIRCUIT ...     the page of a run, a sweep or a circuit, or of several beside each other; loads no model
          [--output FILE.html] [--figures FOLDER: every figure as SVG, PNG and PDF]
  sweep   search settings with Ray Tune, many circuits per copy of the model   [--address of a Ray cluster] [--dry-run] [--fresh]
  sweep best FOLDER   the config of the best trial   [--kl 0.1: the fewest neurons with that | --neurons 200: the lowest KL]
  tasks   list the task builders, or print pairs of the one that --task.name names
  env     versions, devices and cores

`bigcircuit prune --help` shows every setting with its unit and default, `bigcircuit evaluate --help` those of evaluate."""


class Arguments:
    """The words after the verb: the config with its overrides, and the few options that are not settings."""

    def __init__(self, words: Sequence[str]) -> None:
        """Raises UserError for an unknown option or a bad value, SystemExit after --help."""
        rest = list(words)
        if "--help" in rest or "-h" in rest:
            show_settings(Console(highlight=False), USAGE)
            raise SystemExit(0)
        self.fresh = "--fresh" in rest
        rest = [word for word in _without_launcher(rest) if word != "--fresh"]
        path = _take(rest, "--config")
        self.overrides = parse_overrides(rest)
        self.config: Config = load(path, self.overrides)


def _take(words: list[str], option: str) -> str | None:
    """Remove `option value` or `option=value` from the words and return the value."""
    for index, word in enumerate(words):
        if word == option:
            if index + 1 == len(words):
                raise UserError(f"{option} needs a value")
            value = words[index + 1]
            del words[index : index + 2]
            return value
        if word.startswith(option + "="):
            return words.pop(index).partition("=")[2]
    return None


def run_prune(words: Sequence[str]) -> None:
    """Verb `prune`, also the whole of launchers/prune.py."""
    arguments = Arguments(words)
    # Heavy imports come after the config has been found valid, so that a typo is answered at once.
    from bigcircuit.distributed import ranks
    from bigcircuit.prune import prune

    with ranks.joined_ranks() as ranks:
        prune(arguments.config, ranks, fresh=arguments.fresh)


def run_check(words: Sequence[str]) -> None:
    """Verb `check`."""
    rest = list(words)
    ranks, gibibytes = _number(rest, "--ranks", int), _number(rest, "--memory", float)
    arguments = Arguments(rest)
    from bigcircuit.check import check_config
    from bigcircuit.runtime.host_memory import GIB, Memory

    memory = Memory(int(gibibytes * GIB), accelerator=True) if gibibytes else None
    check_config(arguments.config, Console(highlight=False, soft_wrap=True), int(ranks or 1), memory)


def _number(words: list[str], option: str, kind: type) -> float | None:
    text = _take(words, option)
    try:
        return None if text is None else kind(text)
    except ValueError as error:
        raise UserError(f"{option} {text}: give a number") from error


def run_evaluate(words: Sequence[str]) -> None:
    """Verb `evaluate`, also the whole of launchers/evaluate.py."""
    from bigcircuit.evaluation.config import EvaluationSettings, take_options, validated

    rest = _without_launcher(words)
    _help(rest, EvaluationSettings)
    path = _take(rest, "--config")
    options, names, rest = take_options(rest, EvaluationSettings)
    settings, overrides = validated(EvaluationSettings, options), parse_overrides(rest)
    from bigcircuit.distributed import ranks
    from bigcircuit.evaluation.evaluate import evaluate_circuits

    with ranks.joined_ranks() as ranks:
        evaluate_circuits(names, settings, ranks, config=path, overrides=overrides)


def run_compare(words: Sequence[str]) -> None:
    """Verb `compare`."""
    from bigcircuit.evaluation.config import ComparisonSettings, take_options, validated

    _help(words, ComparisonSettings)
    options, names, rest = take_options(words, ComparisonSettings)
    parse_overrides(rest)  # there are none: whatever is left is a mistake, and this names it
    if rest:
        raise UserError(f"compare has no option {rest[0]}; it loads no model")
    settings = validated(ComparisonSettings, options)
    from bigcircuit.evaluation.compare import compare_circuits

    compare_circuits(names, settings, Console(highlight=False, soft_wrap=True))


def run_convert(words: Sequence[str]) -> None:
    """Verb `convert`."""
    from bigcircuit.convert.config import ConversionSettings, parse_conversion

    if "--help" in words or "-h" in words:
        from bigcircuit.convert.convert import help_text

        show_settings(Console(highlight=False), help_text(USAGE), ConversionSettings)
        raise SystemExit(0)
    path, settings = parse_conversion(words)
    from bigcircuit.convert.convert import convert_file

    console = Console(highlight=False, soft_wrap=True)
    done = convert_file(path, settings)
    for line in (*done.notes, f"{done.path}; next: bigcircuit evaluate {done.path} --config CONFIG"):
        console.print(line, markup=False)


def run_report(words: Sequence[str]) -> None:
    """Verb `report`."""
    console = Console(highlight=False, soft_wrap=True)
    if "--help" in words or "-h" in words:
        console.print(USAGE, markup=False)
        raise SystemExit(0)
    names = list(words)
    output, figures = _take(names, "--output"), _take(names, "--figures")
    if unknown := [name for name in names if name.startswith("--")]:
        raise UserError(f"report has no option {unknown[0]}; it has --output FILE and --figures FOLDER")
    from bigcircuit.report.render import write_report

    for path in write_report(names, Path(output) if output else None, Path(figures) if figures else None):
        console.print(str(path), markup=False)


def run_sweep(words: Sequence[str]) -> None:
    """Verb `sweep`, also the whole of launchers/sweep.py."""
    from bigcircuit.sweep.config import SweepSettings, load_sweep, sweep_keys

    console = Console(highlight=False, soft_wrap=True)
    if words[:1] == ["best"]:
        from bigcircuit.sweep.best import show_best

        return show_best(words[1:], console)
    _help(words, SweepSettings, "sweep.")
    rest = [word for word in words if word not in ("--dry-run", "--fresh")]
    path, address = _take(rest, "--config"), _take(rest, "--address")
    sweep = load_sweep(path, parse_overrides(rest, sweep_keys(), ("task.columns.", "sweep.space.")))
    if "--fresh" in words:
        sweep = sweep.fresh()
    if "--dry-run" in words:
        from bigcircuit.sweep.dry_run import dry_run

        return dry_run(sweep, address, console)
    from bigcircuit.sweep.run import run_sweep

    return run_sweep(sweep, address, console)


def _help(words: Sequence[str], settings: type[Section], prefix: str = "") -> None:
    if "--help" in words or "-h" in words:
        show_settings(Console(highlight=False), USAGE, settings, prefix)
        raise SystemExit(0)


def _without_launcher(words: Sequence[str]) -> list[str]:
    """Without what launchers add to the words."""
    return [word for word in words if not word.startswith("--local_rank")]


def run_tasks(words: Sequence[str]) -> None:
    """Verb `tasks`."""
    from bigcircuit.check import list_tasks, show_pairs

    console = Console(highlight=False, soft_wrap=True)
    if words:
        show_pairs(Arguments(words).config, console)
    else:
        list_tasks(console)


def run_env(words: Sequence[str]) -> None:
    """Verb `env`."""
    if words:
        raise UserError(f"env takes no options, not {words[0]!r}")
    from bigcircuit.check import show_environment

    show_environment(Console(highlight=False, soft_wrap=True))


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "prune": run_prune,
    "check": run_check,
    "evaluate": run_evaluate,
    "compare": run_compare,
    "convert": run_convert,
    "report": run_report,
    "sweep": run_sweep,
    "tasks": run_tasks,
    "env": run_env,
}


def answer(run: Callable[[Sequence[str]], None], words: Sequence[str]) -> int:
    """Run a verb and turn a reported error into one line on stderr and its exit code (see errors.py), Ctrl-C into 130."""
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        run(words)
    except ReportedError as error:
        # What goes wrong before the ranks know of each other goes wrong on all of them: one a host says it.
        if os.environ.get("LOCAL_RANK", "0") == "0" if error.show is None else error.show:
            errors.print(f"bigcircuit: {error}", markup=False)
        return error.exit_code
    except KeyboardInterrupt:
        errors.print("bigcircuit: stopped; the same command goes on from the last checkpoint", markup=False)
        return 130
    return 0


def main() -> None:
    """Entry point of the `bigcircuit` command."""
    words = sys.argv[1:]
    if not words or words[0] in ("-h", "--help"):
        Console(highlight=False, soft_wrap=True).print(USAGE, markup=False)
        raise SystemExit(0 if words else 2)
    raise SystemExit(answer(_verb(words[0]), words[1:]))


def _verb(name: str) -> Callable[[Sequence[str]], None]:
    if name in VERBS:
        return VERBS[name]

    def unknown(_: Sequence[str]) -> None:
        from difflib import get_close_matches

        near = get_close_matches(name, VERBS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(VERBS)}"
        raise UserError(f"{name} is not a verb; {hint}")

    return unknown
