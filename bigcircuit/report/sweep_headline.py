"""Head of a sweep's page: title, result in sentences, tiles with the main numbers, and what was searched."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigcircuit.metrics.numbers import count_text, range_text
from bigcircuit.metrics.registry import SCORES
from bigcircuit.report.facts import Fact, closed_nodes, pairs_text
from bigcircuit.report.headline import Tile
from bigcircuit.results.pareto import GOOD_KL
from bigcircuit.results.sweep import SweepResult, SweepTrial


def sweep_title(sweep: SweepResult) -> str:
    """Name the task, and count the trials."""
    task = sweep.base["task"]
    name = Path(task["path"]).stem if task.get("path") else task["name"]
    return f"{name}: {len(sweep.trials)} trials"


def sweep_subtitle(sweep: SweepResult) -> str:
    """Name the model in short."""
    return sweep.base["model"]["path"].rstrip("/").rsplit("/", 1)[-1]


def trial_to_show(sweep: SweepResult) -> SweepTrial | None:
    """Choose the trial that the page shows first: the smallest good trial; None if no trial has finished."""
    good = (trial for trial in sweep.front if trial.point[1] <= GOOD_KL)
    return next(good, sweep.front[-1] if sweep.front else None)


def sweep_lead(sweep: SweepResult) -> str:
    """Describe the result in sentences."""
    first = trial_to_show(sweep)
    done, of = len(sweep.finished), len(sweep.trials)
    if first is None:
        failed = sum(trial.record.status == "failed" for trial in sweep.trials)
        return (
            f"All {of} trials have failed." if failed == of else f"No trial has finished yet, of {of} that have begun."
        )
    said = f"{done} of {of} trials have finished" if done < of else f"All {of} trials have finished"
    (kept, kl), whole = first.point, first.result["nodes"]["total"]
    reached = f"a held-out KL of at most {GOOD_KL:g} nats" if kl <= GOOD_KL else "the lowest held-out KL"
    many = len(sweep.front)
    return (
        f"{said}; {many} {'is' if many == 1 else 'are'} on the front: no other circuit is as small and as faithful. "
        f"The smallest with {reached} keeps {kept:,} of {whole:,} neurons (trial {first.number}, KL {kl:.2g})."
    )


def sweep_tiles(sweep: SweepResult) -> list[Tile]:
    """Make the tiles: number of trials, and ranges over the front."""
    counted = Counter(trial.record.status for trial in sweep.trials)
    found = [Tile(str(len(sweep.trials)), "trials", ", ".join(f"{n} {status}" for status, n in counted.items()))]
    if sweep.front:
        rows = [trial.row for trial in sweep.front]
        of = sweep.front[0].result["nodes"]
        heads, total = ([row["kept"][name] for row in rows] for name in ("head", "total"))
        found += [
            Tile(str(len(rows)), "on the front", "beaten by none"),
            Tile(range_text(total, ","), "neurons", f"of {count_text(of['total'])}, on the front"),
            Tile(range_text(heads, ","), "heads", f"of {count_text(of['head'])}, on the front"),
            Tile(range_text([trial.point[1] for trial in sweep.front], ".2g"), SCORES["kl"].heading, "on the front"),
        ]
    return found


def sweep_facts(sweep: SweepResult) -> list[Fact]:
    """Describe what was asked and searched; a searched setting is listed by its domain, not by the value of the config."""
    base, search = sweep.base, sweep.search
    ablation = base["ablation"]["kind"] + ("_per_position" if base["ablation"]["per_position"] else "")
    pairs: Mapping[str, int] = next((trial.result["pairs"] for trial in sweep.finished), {})
    algorithm = search["search"] if search["search"] == "grid" else f"{search['search']}, seed {search['seed']}"
    scheduler = search.get("scheduler", "none")
    rows = [
        ("Model", "model.path", base["model"]["path"]),
        ("Behaviour", "task.name", base["task"].get("path") or base["task"]["name"]),
        ("Pairs", "task.size", pairs_text(pairs)),
        ("Closed nodes", "ablation.kind", closed_nodes(ablation)),
        ("Training", "train.steps", f"{base['train']['steps']:,} steps of {base['train']['batch_size']} pairs"),
        ("Search", "", algorithm),
        ("Scheduler", "", "" if scheduler == "none" else f"{scheduler}, comparing {search['metric']}"),
        *((key, "", _domain(domain)) for key, domain in search["space"].items()),
    ]
    return [Fact(name, [("", value)]) for name, key, value in rows if value and key not in search["space"]]


def _domain(domain: Any) -> str:
    """Describe the domain of a searched setting."""
    if not isinstance(domain, Mapping):
        return ", ".join("none" if value is None else str(value) for value in domain)
    kind, (low, high) = next((kind, ends) for kind, ends in domain.items() if ends is not None)
    return f"{low:g} to {high:g}, {kind.replace('_', '-')}"
