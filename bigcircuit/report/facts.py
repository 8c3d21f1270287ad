"""What was asked of circuits and where they come from: each fact once, and by circuit where circuits differ."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bigcircuit.ablation.kinds import KINDS
from bigcircuit.model.granularity import NODE_NAMES
from bigcircuit.results.run import Json, RunCircuit

_LISTED = 6
"""Most values of a fact that are listed by circuit."""


class Fact(NamedTuple):
    """A line of facts."""

    name: str
    values: Sequence[tuple[str, str]]
    """Whose value it is, empty where it is that of all circuits, and the value."""


def spread(values: Sequence[float], form: str) -> str:
    """The lowest and the highest value, or the one they all are."""
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low.rstrip('%')}–{high}"


def closed_nodes(ablation: str) -> str:
    """What closed nodes output, by the full name of the ablation; a name that is not known as it is."""
    return KINDS[ablation].label if ablation in KINDS else ablation


def asked(members: Mapping[str, RunCircuit]) -> list[Fact]:
    """The question, and how it was trained and evaluated."""
    facts = _merged({name: _asked(member) for name, member in members.items()})
    steps = [int(m.row["best_step"]) for m in members.values() if str(m.row.get("best_step", "")).isdigit()]
    return facts + ([Fact("Best step", [("", spread(steps, "{:,}"))])] if steps else [])


def _asked(member: RunCircuit) -> dict[str, str]:
    about, found = member.about, member.metadata
    train = about.get("config", {}).get("train", {})
    ablation = found.get("ablation", "")
    return {
        "Model": about.get("model", ""),
        "Behaviour": about.get("task", ""),
        "Pairs": ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in about.get("pairs", {}).items() if n),
        "Left out": ", ".join(f"{n:,} {name} pairs" for name, n in about.get("left_out", {}).items() if n),
        "Closed nodes": closed_nodes(ablation),
        "Size asked for": size_asked(member.row),
        "Training": f"{train['steps']:,} steps of {train['batch_size']} pairs" if train else "",
        "Population": _population(about.get("config", {}).get("population", {})),
        "Evaluation": _evaluation(about.get("evaluation", {})),
    }


def size_asked(row: Json) -> str:
    """The sizes and penalties of one member."""
    units = {**NODE_NAMES, "total": "site neurons"}
    found = [f"{size:,} {units[name]}" for name, size in row.get("targets", {}).items()]
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


def hashes(members: Mapping[str, RunCircuit]) -> list[Fact]:
    """Hashes and identities from the circuit files."""
    first = ("format", "model", "model_revision", "adapter", "task", "ablation", "metric", "operation")
    known = [member.metadata for member in members.values()]
    keys = [*first, *sorted({key for found in known for key in found if key.endswith("_sha256")})]
    return _merged(
        {name: {key.replace("_", " "): m.metadata.get(key, "") for key in keys} for name, m in members.items()}
    )


def _merged(found: Mapping[str, Mapping[str, str]]) -> list[Fact]:
    """Facts by circuit as lines; those that no circuit has are left out."""
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
