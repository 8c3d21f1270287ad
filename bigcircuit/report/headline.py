"""The head of a page: the behaviour and what was found, in words and in a few figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bigcircuit.report.facts import spread
from bigcircuit.results.run import Json, RunCircuit


class Tile(NamedTuple):
    """One figure of the headline."""

    value: str
    label: str
    detail: str = ""


def title(members: Mapping[str, RunCircuit], kind: str) -> str:
    """The behaviours, and how many circuits there are. kind: `circuits` or `members`."""
    tasks = ", ".join(dict.fromkeys(task_of(member) or name for name, member in members.items()))
    return tasks if len(members) == 1 else f"{tasks}: {len(members)} {kind}"


def task_of(member: RunCircuit) -> str:
    """The behaviour in short: the name of its file of pairs, or of its builder."""
    return Path(member.about.get("task", "")).stem


def subtitle(members: Mapping[str, RunCircuit]) -> str:
    """The model."""
    models = dict.fromkeys(str(member.about.get("model", "")) for member in members.values())
    return ", ".join(name.rstrip("/").rsplit("/", 1)[-1] for name in models)


def lead(rows: Sequence[Json], of: Mapping[str, int], verdict: str, shared: str) -> str:
    """The result in words. verdict: of an evaluation; shared: what circuits have in common, where there are several."""
    if len(rows) > 1:
        return " ".join(filter(None, (_several(rows, of), shared, verdict and f"Of the first: {verdict}")))
    if verdict:
        return verdict
    kept, scores = rows[0]["kept"], rows[0]["scores"]
    text = (
        f"The circuit keeps {kept['total']:,} of {of['total']:,} neurons ({kept['head']} of {of['head']} heads, {kept['mlp']} of "
        f"{of['mlp']} MLPs)"
    )
    if "exact_match" not in scores:
        return text + "."
    return (
        f"{text}. On held-out prompts its KL to the full model is {scores['kl']['mean']:.3f} nats; its likeliest token is the full "
        f"model's on {scores['exact_match']['mean']:.0%}, and it prefers the right answer on {scores['accuracy']['mean']:.0%}."
    )


def _several(rows: Sequence[Json], of: Mapping[str, int]) -> str:
    neurons, heads = (spread([row["kept"][name] for row in rows], "{:,}") for name in ("total", "head"))
    text = f"The {len(rows)} circuits keep {neurons} of {of['total']:,} neurons ({heads} of {of['head']} heads)"
    if not all("kl" in row["scores"] for row in rows):
        return text + "."
    kl, same = ([row["scores"][name]["mean"] for row in rows] for name in ("kl", "exact_match"))
    return (
        f"{text} at a held-out KL of {spread(kl, '{:.3f}')} nats; their likeliest token is the full model's on "
        f"{spread(same, '{:.0%}')} of the prompts."
    )


def tiles(rows: Sequence[Json], of: Mapping[str, int], heads: Json | None) -> list[Tile]:
    """The figures that matter. of: nodes of the model; heads: pairwise overlap of heads, where there are several circuits."""
    found = []
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
