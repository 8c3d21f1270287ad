"""`bigcircuit <verb>`: parse, run, and turn what the user can mend into one line and an exit code.

Heavy imports come after the words have been found valid, so that a typo is answered at once.
"""

import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, version
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING

from bigcircuit.config.extras import need
from bigcircuit.config.load import load
from bigcircuit.config.options import Command, parse_command
from bigcircuit.config.own_code import allow
from bigcircuit.config.schema import Config
from bigcircuit.config.verbs import VERBS, Settings
from bigcircuit.errors import ReportedError, UserError, printable

if TYPE_CHECKING:
    from bigcircuit.runtime.console import PlainConsole


def parse_verb(name: str, words: Sequence[str]) -> Command:
    """Read the words after a verb. Raises UserError for a mistake, and SystemExit after `--help`."""
    notes = {"convert": _format_rules, "export": _export_formats}
    command = parse_command(VERBS[name], words, settings_of(name), notes.get(name))
    allow(command.options.get("allow") or ())
    return command


def settings_of(name: str) -> Settings:
    """Return the sections of settings that a verb takes, each with the prefix of its keys."""
    if name in ("prune", "check", "tasks"):
        return {Config: ""}
    if name in ("evaluate", "compare"):
        from bigcircuit.evaluation.config import ComparisonSettings, EvaluationSettings

        return {EvaluationSettings: "", Config: ""} if name == "evaluate" else {ComparisonSettings: ""}
    if name == "export":
        from bigcircuit.export.config import ExportSettings

        return {ExportSettings: "", Config: ""}
    if name == "recover":
        from bigcircuit.recover.config import RecoverSettings

        return {RecoverSettings: "recover.", Config: ""}
    if name == "convert":
        from bigcircuit.convert.config import ConversionSettings

        return {ConversionSettings: ""}
    if name == "sweep":
        from bigcircuit.sweep.config import SweepSettings

        return {SweepSettings: "sweep.", Config: ""}
    return {}


def _format_rules() -> list[str]:
    from bigcircuit.convert.formats import COMMON_RULE, CONVERT_FORMATS

    known = CONVERT_FORMATS.values()
    read = [f"{one.name}: {one.rule}" for one in known if one.read is not None]
    written = [
        f"--to {one.to}: {one.name}{f', {one.suffix}' if one.suffix else ', a folder'}." for one in known if one.write
    ]
    return [*read, f"All formats that are read: {COMMON_RULE}", *written]


def _export_formats() -> list[str]:
    from bigcircuit.export.formats import EXPORT_FORMATS

    return [f"{known.name}: {known.description}. Loads in {known.loads_in}." for known in EXPORT_FORMATS.values()]


def run_prune(words: Sequence[str]) -> None:
    """Run the verb `prune`; also the whole of launchers/prune.py."""
    command = parse_verb("prune", words)
    config = load(command.options["config"], command.settings[Config], preset=command.options["preset"])
    from bigcircuit.distributed.launcher_env import read_launcher_env
    from bigcircuit.io.run_dir import choose_run_dir

    if read_launcher_env().world_size == 1:  # several ranks must agree on what they find
        folder = choose_run_dir(config, command.options["fresh"])
        if folder.finished:
            _console().print(folder.nothing_to_do)
            return
    from bigcircuit.distributed.ranks import joined_ranks
    from bigcircuit.prune import prune

    with joined_ranks(config.model.device) as ranks:
        prune(config, ranks, fresh=command.options["fresh"])


def run_check(words: Sequence[str]) -> None:
    """Run the verb `check`."""
    command = parse_verb("check", words)
    config = load(command.options["config"], command.settings[Config], preset=command.options["preset"])
    from bigcircuit.check import check_config
    from bigcircuit.runtime.host_memory import FreeMemory

    memory = FreeMemory.asked(command.options["device"], command.options["memory"], config.model.device)
    check_config(config, _console(), command.options["ranks"] or 1, memory, timed=command.options["time"])


def run_evaluate(words: Sequence[str]) -> None:
    """Run the verb `evaluate`; also the whole of launchers/evaluate.py."""
    from bigcircuit.evaluation.config import EvaluationSettings, validated

    command = parse_verb("evaluate", words)
    settings = validated(EvaluationSettings, command.settings[EvaluationSettings])
    from bigcircuit.distributed.ranks import joined_ranks
    from bigcircuit.evaluation.evaluate import evaluate_circuits
    from bigcircuit.metrics.own import named_metrics, own_scores

    # The config of a run folder does not say where the run is evaluated.
    source = None if any(Path(name).is_dir() for name in command.names) else command.options["config"]
    wanted = {name: value for name, value in command.settings[Config].items() if name == "model.device"}
    with own_scores(named_metrics(settings.metrics)), joined_ranks(load(source, wanted).model.device) as ranks:
        evaluate_circuits(
            command.names, settings, ranks, config=command.options["config"], overrides=command.settings[Config]
        )


def run_compare(words: Sequence[str]) -> None:
    """Run the verb `compare`."""
    from bigcircuit.evaluation.config import ComparisonSettings, validated

    command = parse_verb("compare", words)
    settings = validated(ComparisonSettings, command.settings[ComparisonSettings])
    from bigcircuit.evaluation.compare import compare_circuits

    compare_circuits(command.names, settings, _console())


def run_export(words: Sequence[str]) -> None:
    """Run the verb `export`; also the whole of launchers/export.py."""
    from bigcircuit.evaluation.config import validated
    from bigcircuit.export.config import ExportSettings

    command = parse_verb("export", words)
    settings = validated(ExportSettings, command.settings[ExportSettings])
    from bigcircuit.distributed.ranks import joined_ranks
    from bigcircuit.export.export import export_circuit

    device = load(None, {k: v for k, v in command.settings[Config].items() if k == "model.device"}).model.device
    with joined_ranks(device) as ranks:
        export_circuit(
            command.names, settings, ranks, config=command.options["config"], overrides=command.settings[Config]
        )


def run_recover(words: Sequence[str]) -> None:
    """Run the verb `recover`; also the whole of launchers/recover.py."""
    from bigcircuit.evaluation.config import validated
    from bigcircuit.recover.config import RecoverSettings

    command = parse_verb("recover", words)
    given = {key.removeprefix("recover."): value for key, value in command.settings[RecoverSettings].items()}
    settings, overrides = validated(RecoverSettings, given, "recover."), command.settings[Config]
    device = load(None, {k: v for k, v in overrides.items() if k == "model.device"}).model.device
    from bigcircuit.distributed.ranks import joined_ranks
    from bigcircuit.recover.recover import recover

    with joined_ranks(device) as ranks:
        recover(command.names, settings, ranks, overrides)


def run_convert(words: Sequence[str]) -> None:
    """Run the verb `convert`."""
    from bigcircuit.convert.config import ConversionSettings, conversion_settings

    command = parse_verb("convert", words)
    path, settings = conversion_settings(command.names, command.settings[ConversionSettings])
    from bigcircuit.convert.convert import convert_file
    from bigcircuit.runtime.progress import ProgressDisplay

    console = _console()
    done = convert_file(path, settings, ProgressDisplay(True, console=console))
    after = "" if settings.to else f"; next: bigcircuit evaluate {done.path} --config CONFIG"
    for line in (*done.notes, f"{done.path}{after}"):
        console.print(line)


def run_report(words: Sequence[str]) -> None:
    """Run the verb `report`."""
    command, console = parse_verb("report", words), _console()
    output, figures = (Path(text) if text else None for text in map(command.options.get, ("output", "figures")))
    need("bigcircuit report", "report")
    from bigcircuit.report.render import write_report

    for path in write_report(command.names, output, figures):
        console.print(str(path))


def run_sweep(words: Sequence[str]) -> None:
    """Run the verb `sweep`, or `sweep best`; also the whole of launchers/sweep.py."""
    if words[:1] == ["best"]:
        return run_sweep_best(words[1:])
    from bigcircuit.sweep.config import SweepSettings, load_sweep

    command = parse_verb("sweep", words)
    config, address = command.options["config"], command.options["address"]
    sweep = load_sweep(config, {**command.settings[Config], **command.settings[SweepSettings]})
    need("bigcircuit sweep", "sweep")
    need("bigcircuit sweep", "report")
    if command.options["fresh"]:
        sweep = sweep.fresh()
    if command.options["dry_run"]:
        from bigcircuit.sweep.dry_run import dry_run

        return dry_run(sweep, address, _console())
    from bigcircuit.sweep.run import execute_sweep

    return execute_sweep(sweep, address, _console())


def run_sweep_best(words: Sequence[str]) -> None:
    """Run the verb `sweep best`."""
    command = parse_verb("sweep best", words)
    from bigcircuit.sweep.best import show_best

    bounds = {key: bound for key, bound in command.options.items() if bound is not None}
    show_best(command.names, bounds, _console())


def run_tasks(words: Sequence[str]) -> None:
    """Run the verb `tasks`."""
    command = parse_verb("tasks", words)
    config = load(command.options["config"], command.settings[Config], preset=command.options["preset"])
    from bigcircuit.check import list_tasks, show_pairs

    if words:
        show_pairs(config, _console())
    else:
        list_tasks(_console())


def run_env(words: Sequence[str]) -> None:
    """Run the verb `env`."""
    parse_verb("env", words)
    from bigcircuit.check import show_environment

    show_environment(_console())


RUNS: dict[str, Callable[[Sequence[str]], None]] = {
    "prune": run_prune,
    "check": run_check,
    "evaluate": run_evaluate,
    "compare": run_compare,
    "export": run_export,
    "recover": run_recover,
    "convert": run_convert,
    "report": run_report,
    "sweep": run_sweep,
    "sweep best": run_sweep_best,
    "tasks": run_tasks,
    "env": run_env,
}
"""Verb -> what runs it."""


def answer(run: Callable[[Sequence[str]], None], words: Sequence[str]) -> int:
    """Run a verb. Returns the exit code; a reported error becomes one line on stderr and its exit code, Ctrl-C 130."""
    if isinstance(sys.stdout, TextIOWrapper):  # a terminal or log that is not UTF-8 shows escapes, as stderr does
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        run(words)
    except ReportedError as error:
        # A mistake before the ranks are joined is made on all of them: one rank a host shows it.
        if os.environ.get("LOCAL_RANK", "0") == "0" if error.show is None else error.show:
            sys.stderr.write(printable(f"bigcircuit: {error}\n"))
        return error.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("bigcircuit: stopped; the same command goes on from the last checkpoint\n")
        return 130
    return 0


def main() -> None:
    """Entry point of the `bigcircuit` command."""
    words = sys.argv[1:]
    while words and words[0].replace("-", "_").startswith("__local_rank="):
        words = words[1:]  # a launcher puts it in front of the verb; the rank itself is in the environment
    verb, *words = words or [""]
    if verb in ("", "-h", "--help"):
        from bigcircuit.config.help import show_verbs

        show_verbs(_console(), VERBS)
        raise SystemExit(0 if verb else 2)
    if verb == "--version":
        _console().print(_versions())
        raise SystemExit(0)
    raise SystemExit(answer(RUNS.get(verb) or _unknown(verb), words))


def _versions() -> str:
    """List the versions of the package and of the libraries it stands on, without importing any."""
    found = {}
    for name in ("bigcircuit", "torch", "transformers", "deepspeed"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return "\n".join(f"{name} {number}" for name, number in found.items())


def _unknown(verb: str) -> Callable[[Sequence[str]], None]:
    def refuse(_: Sequence[str]) -> None:
        near = get_close_matches(verb, RUNS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(RUNS)}"
        raise UserError(f"{verb} is not a verb{', which comes first' if verb.startswith('-') else ''}; {hint}")

    return refuse


def _console() -> "PlainConsole":
    from bigcircuit.runtime.console import PlainConsole

    return PlainConsole(soft_wrap=True)
