"""The head of a page: what was asked and what was found, in words and in a few figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bigcircuit.report import charts
from bigcircuit.report.sources import Json, Member, Source


class Tile(NamedTuple):
    """One figure of the headline."""

    value: str
    label: str
    detail: str = ""


def title(sources: Sequence[Source]) -> str:
    """The behaviour, and how many circuits there are."""
    tasks = list(dict.fromkeys(_task(source) for source in sources))
    count = sum(len(source.members) for source in sources)
    return tasks[0] if len(tasks) == 1 and count == 1 else f"{', '.join(tasks)}: {count} circuits"


def _task(source: Source) -> str:
    name = str(source.summary["task"] if source.summary else source.metadata.get("task") or source.name)
    return Path(name).stem if "/" in name else name


def subtitle(sources: Sequence[Source]) -> str:
    """The model."""
    models = dict.fromkeys(str(s.summary["model"] if s.summary else s.metadata.get("model", "")) for s in sources)
    return ", ".join(name.rstrip("/").rsplit("/", 1)[-1] for name in models)


def lead(source: Source, members: Mapping[str, Member], shared: str) -> str:
    """The result in words. shared: what circuits have in common, in words, where there are several."""
    verdict = source.evaluation["verdict"] if source.evaluation else ""
    if len(members) > 1 and shared:
        return f"{shared} {verdict and 'The first: ' + verdict}".strip()
    if verdict:
        return verdict
    row, of = next(iter(members.values())).row, source.nodes
    kept, scores = row["kept"], row["scores"]
    text = (
        f"Keeping {kept['total']:,} of {of['total']:,} neurons ({kept['head']} of {of['head']} heads, {kept['mlp']} of "
        f"{of['mlp']} MLPs)"
    )
    if "exact_match" not in scores:
        return text + "."
    return (
        f"{text} the model still predicts what the full model predicts on {scores['exact_match']['mean']:.0%} of the held-out "
        f"prompts and prefers the right answer on {scores['accuracy']['mean']:.0%}."
    )


def tiles(rows: Sequence[Json], of: Mapping[str, int], heads: Json | None, *, population: bool) -> list[Tile]:
    """The figures that matter. of: nodes of the model; heads: pairwise overlap of heads, where there are several circuits."""
    found = []
    if len(rows) > 1:
        found.append(
            Tile(str(len(rows)), "members" if population else "circuits", "of one population" if population else "")
        )
    for name, label in (("total", "neurons kept"), ("head", "heads"), ("mlp", "MLPs")):
        values = [row["kept"][name] for row in rows]
        share = spread([value / of[name] for value in values], "{:.0%}")
        found.append(Tile(spread(values, "{:,}"), label, f"of {of[name]:,}, {share}"))
    if all("parameters_kept" in row for row in rows):
        share = spread([row["parameters_kept"] for row in rows], "{:.1%}")
        found.append(Tile(share, "parameters", "of the decoder layers"))
    if all("kl" in row["scores"] for row in rows):
        kl = [row["scores"]["kl"] for row in rows]
        detail = f"95%: {kl[0]['low']:.3f} to {kl[0]['high']:.3f}" if len(rows) == 1 else "to the full model"
        found.append(Tile(spread([one["mean"] for one in kl], "{:.3f}"), "KL, nats", detail))
        same = [row["scores"]["exact_match"]["mean"] for row in rows]
        found.append(Tile(spread(same, "{:.0%}"), "same prediction", "as the full model"))
    if len(rows) > 1 and heads is not None:
        found.append(Tile(f"{heads['mean']:.2f}", "Jaccard of heads", f"by chance {heads['chance']:.2f}"))
    return found


def spread(values: Sequence[float], form: str) -> str:
    """The lowest and the highest value, or the one they all are."""
    low, high = form.format(min(values)), form.format(max(values))
    return low if low == high else f"{low.rstrip('%')}–{high}"


def asked(source: Source) -> list[tuple[str, str]]:
    """The question of the run in a few lines."""
    found = source.metadata
    summary, config = source.summary or {}, (source.setup or {}).get("config", {})
    pairs = summary.get("pairs", {})
    first = source.members[0].row
    sizes = list(dict.fromkeys(size_asked(member.row) for member in source.members))
    rows = [
        ("Model", str(summary.get("model") or found.get("model", ""))),
        ("Behaviour", str(summary.get("task") or found.get("task", ""))),
        ("Pairs", ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in pairs.items() if count)),
        ("Closed nodes", ABLATIONS.get(found.get("ablation", ""), found.get("ablation", ""))),
        ("Size asked for", sizes[0] if len(sizes) == 1 else "differs by member"),
        ("Training", _training(config, first)),
    ]
    if (left := summary.get("left_out", {})) and any(left.values()):
        rows.append(("Left out", ", ".join(f"{count} {name} pairs" for name, count in left.items() if count)))
    return [(name, value) for name, value in rows if value]


ABLATIONS = {
    "interchange": "interchange: their activation on the corrupted prompt",
    "zero": "zero: nothing",
    "mean": "mean: their mean over a data set",
    "mean_per_position": "mean per position: their mean at each position over a data set",
    "optimal": "optimal: a constant learned with the gates",
}
"""What closed nodes do, by the name of the ablation."""


def size_asked(row: Json) -> str:
    """The sizes and penalties of one member."""
    asked = [f"{size:,} {_unit(name)}" for name, size in row.get("targets", {}).items()]
    asked += [f"penalty of {charts.GRANULARITY[name]} {weight:g}" for name, weight in row.get("penalties", {}).items()]
    return ", ".join(asked)


def _unit(name: str) -> str:
    return "site neurons" if name == "total" else charts.GRANULARITY[name]


def _training(config: Json, row: Json) -> str:
    train = config.get("train", {})
    if not train:
        return f"best at step {row['best_step']}" if row.get("best_step") else ""
    return f"{train['steps']:,} steps of {train['batch_size']} pairs, the best at step {row['best_step']}"


def hashes(source: Source) -> list[tuple[str, str]]:
    """Hashes and identities from the first circuit file, which all circuits of a run share."""
    found = source.metadata
    kept = [
        key
        for key in ("format", "model", "model_revision", "adapter", "task", "ablation", "metric", "operation")
        if found.get(key)
    ]
    kept += [key for key in sorted(found) if key.endswith("_sha256") and found[key]]
    return [(key.replace("_", " "), found[key]) for key in kept]
