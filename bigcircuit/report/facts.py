"""Facts about circuits: what was asked, and hashes; each fact once, and by circuit where circuits differ."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bigcircuit.ablation.kinds import KINDS
from bigcircuit.io.files import Json
from bigcircuit.metrics.numbers import count_text, range_text
from bigcircuit.model.granularity import NODE_NAMES
from bigcircuit.results.run import RunCircuit

_LISTED = 6
"""Most values of a fact that are listed by circuit."""


class Fact(NamedTuple):
    """A named property of the circuits of a page."""

    name: str
    values: Sequence[tuple[str, str]]
    """Names of circuits, empty for all circuits, and their value."""


def closed_nodes(ablation: str) -> str:
    """Describe what closed nodes output, by the full name of the ablation; an unknown name is returned as it is."""
    return KINDS[ablation].label if ablation in KINDS else ablation


def setting_facts(members: Mapping[str, RunCircuit]) -> list[Fact]:
    """Describe what was asked of circuits, and how they were trained and evaluated."""
    facts = _merged({name: _settings(member) for name, member in members.items()})
    steps = [int(m.row["best_step"]) for m in members.values() if str(m.row.get("best_step", "")).isdigit()]
    return facts + ([Fact("Best step", [("", range_text(steps, ","))])] if steps else [])


def _settings(member: RunCircuit) -> dict[str, str]:
    about, found = member.about, member.metadata
    train = about.get("config", {}).get("train", {})
    ablation = found.get("ablation", "")
    return {
        "Model": about.get("model", ""),
        "Behaviour": about.get("task", ""),
        "Pairs": pairs_text(about.get("pairs", {})),
        "Left out": ", ".join(f"{n:,} {name} pairs" for name, n in about.get("left_out", {}).items() if n),
        "Closed nodes": closed_nodes(ablation),
        "Size asked for": requested_size(member.row),
        "Training": f"{train['steps']:,} steps of {train['batch_size']} pairs" if train else "",
        "Population": _population(about.get("config", {}).get("population", {})),
        "Evaluation": _evaluation(about.get("evaluation", {})),
    }


def pairs_text(pairs: Mapping[str, int]) -> str:
    """List how many pairs each split has; empty splits are left out."""
    return ", ".join(f"{count_text(count)} {split.replace('_', ' ')}" for split, count in pairs.items() if count)


def requested_size(row: Json) -> str:
    """List the sizes and penalties that were set for one member."""
    units = {**NODE_NAMES, "total": "site neurons"}
    found = [f"{count_text(size)} {units[name]}" for name, size in row.get("targets", {}).items()]
    found += [f"penalty of {NODE_NAMES[name]} {weight:g}" for name, weight in row.get("penalties", {}).items()]
    return ", ".join(found)


def _population(config: Json) -> str:
    overrides, seeds = config.get("members", []), config.get("seeds", 1)
    if overrides:
        keys = dict.fromkeys(key for one in overrides for key in one)
        return f"{len(overrides)} members that differ in {', '.join(keys)}"
    return f"{seeds} members that differ in their seed" if seeds and seeds > 1 else ""


def _evaluation(settings: Json) -> str:
    if not settings:
        return ""
    return (
        f"{settings['draws']} random circuits of the same shape; {settings['partial_draws']} draws of each part of the rest; a "
        f"node is needed if KL rises by more than {settings['tolerance']:g} nats; seed {settings['seed']}"
    )


def hash_facts(members: Mapping[str, RunCircuit]) -> list[Fact]:
    """List format, model, task and hashes from the metadata of the circuit files."""
    first = ("format", "model", "model_revision", "adapter", "task", "ablation", "metric", "operation")
    known = [member.metadata for member in members.values()]
    keys = [*first, *sorted({key for found in known for key in found if key.endswith("_sha256")})]
    return _merged(
        {name: {key.replace("_", " "): m.metadata.get(key, "") for key in keys} for name, m in members.items()}
    )


def _merged(found: Mapping[str, Mapping[str, str]]) -> list[Fact]:
    """Merge the facts of circuits: one value where all agree. Facts without any value are left out."""
    facts = []
    for name in next(iter(found.values())):
        owners: dict[str, list[str]] = {}
        for circuit, known in found.items():
            owners.setdefault(known[name], []).append(circuit)
        if len(owners) == 1:
            values = [("", value) for value in owners]
        elif len(owners) > _LISTED:
            values = [("", f"{len(owners)} different ones, by circuit")]
        else:
            values = [(_names(circuits), value or "–") for value, circuits in owners.items()]
        if any(value for _, value in values):
            facts.append(Fact(name, values))
    return facts


def _names(circuits: Sequence[str]) -> str:
    return ", ".join(circuits[:_LISTED]) + (f" and {len(circuits) - _LISTED} more" if len(circuits) > _LISTED else "")
