"""The head of a sweep's page: what was searched and what was found, in words and in a few figures."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigcircuit.report.facts import Fact, closed_nodes, spread
from bigcircuit.report.headline import Tile
from bigcircuit.results.pareto import GOOD_KL
from bigcircuit.results.sweep import SweepResult, SweepTrial


def title(sweep: SweepResult) -> str:
    """The behaviour, and how many trials there are."""
    task = sweep.base["task"]
    name = Path(task["path"]).stem if task.get("path") else task["name"]
    return f"{name}: {len(sweep.trials)} trials"


def subtitle(sweep: SweepResult) -> str:
    """The model."""
    return sweep.base["model"]["path"].rstrip("/").rsplit("/", 1)[-1]


def first_of(sweep: SweepResult) -> SweepTrial | None:
    """The trial to show first; None if none has finished."""
    good = (trial for trial in sweep.front if trial.point[1] <= GOOD_KL)
    return next(good, sweep.front[-1] if sweep.front else None)


def lead(sweep: SweepResult) -> str:
    """What came of it, in words."""
    first = first_of(sweep)
    done, of = len(sweep.finished), len(sweep.trials)
    if first is None:
        failed = sum(trial.record.status == "failed" for trial in sweep.trials)
        return (
            f"All {of} trials have failed." if failed == of else f"No trial has finished yet, of {of} that have begun."
        )
    said = f"{done} of {of} trials have finished" if done < of else f"All {of} trials have finished"
    (kept, kl), whole = first.point, first.summary["nodes"]["total"]
    reached = f"a held-out KL of at most {GOOD_KL:g} nats" if kl <= GOOD_KL else "the lowest held-out KL"
    many = len(sweep.front)
    return (
        f"{said}; {many} {'is' if many == 1 else 'are'} on the front: no other circuit is as small and as faithful. "
        f"The smallest with {reached} keeps {kept:,} of {whole:,} neurons (trial {first.number}, KL {kl:.2g})."
    )


def tiles(sweep: SweepResult) -> list[Tile]:
    """The figures that matter."""
    counted = Counter(trial.record.status for trial in sweep.trials)
    found = [Tile(str(len(sweep.trials)), "trials", ", ".join(f"{n} {status}" for status, n in counted.items()))]
    if sweep.front:
        rows = [trial.row for trial in sweep.front]
        of = sweep.front[0].summary["nodes"]
        heads, total = ([row["kept"][name] for row in rows] for name in ("head", "total"))
        found += [
            Tile(str(len(rows)), "on the front", "beaten by none"),
            Tile(spread(total, "{:,}"), "neurons", f"of {of['total']:,}, on the front"),
            Tile(spread(heads, "{:,}"), "heads", f"of {of['head']:,}, on the front"),
            Tile(spread([t.point[1] for t in sweep.front], "{:.2g}"), "KL, nats", "on the front"),
        ]
    return found


def asked(sweep: SweepResult) -> list[Fact]:
    """The question, and what was searched. A setting that was searched is not said as if it were one for all."""
    base, search = sweep.base, sweep.search
    ablation = base["ablation"]["kind"] + ("_per_position" if base["ablation"]["per_position"] else "")
    pairs = next((t.summary["pairs"] for t in sweep.finished), {})
    algorithm = search["search"] if search["search"] == "grid" else f"{search['search']}, seed {search['seed']}"
    scheduler = search.get("scheduler", "none")
    rows = [
        ("Model", "model.path", base["model"]["path"]),
        ("Behaviour", "task.name", base["task"].get("path") or base["task"]["name"]),
        ("Pairs", "task.size", ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in pairs.items() if n)),
        ("Closed nodes", "ablation.kind", closed_nodes(ablation)),
        ("Training", "train.steps", f"{base['train']['steps']:,} steps of {base['train']['batch_size']} pairs"),
        ("Search", "", algorithm),
        ("Scheduler", "", "" if scheduler == "none" else f"{scheduler}, comparing {search['metric']}"),
        *((key, "", _domain(domain)) for key, domain in search["space"].items()),
    ]
    return [Fact(name, [("", value)]) for name, key, value in rows if value and key not in search["space"]]


def _domain(domain: Any) -> str:
    """What a setting was drawn from, in words."""
    if not isinstance(domain, Mapping):
        return ", ".join("none" if value is None else str(value) for value in domain)
    kind, (low, high) = next((kind, ends) for kind, ends in domain.items() if ends is not None)
    return f"{low:g} to {high:g}, {kind.replace('_', '-')}"
