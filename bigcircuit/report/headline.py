"""Head of a page: title, result in sentences, and tiles with the main numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from bigcircuit.io.files import Json
from bigcircuit.metrics.numbers import count_text, range_text
from bigcircuit.metrics.registry import SCORES, is_on_text
from bigcircuit.results.run import RunCircuit


class Tile(NamedTuple):
    """A number with its label, as the head of a page shows it."""

    value: str
    label: str
    detail: str = ""


def title(members: Mapping[str, RunCircuit], kind: str) -> str:
    """Name the tasks, and count the circuits if there are several. kind: `circuits` or `members`."""
    tasks = ", ".join(dict.fromkeys(task_of(member) or name for name, member in members.items()))
    return tasks if len(members) == 1 else f"{tasks}: {len(members)} {kind}"


def task_of(member: RunCircuit) -> str:
    """Name the task in short: by its pair file, or by its builder."""
    return Path(member.about.get("task", "")).stem


def subtitle(members: Mapping[str, RunCircuit]) -> str:
    """Name the models in short."""
    models = dict.fromkeys(str(member.about.get("model", "")) for member in members.values())
    return ", ".join(name.rstrip("/").rsplit("/", 1)[-1] for name in models)


def lead(rows: Sequence[Json], of: Mapping[str, int], verdict: str, shared: str) -> str:
    """Describe the result in sentences.

    rows: rows of summary.json. of: number of nodes of the model. verdict: of an evaluation, or empty. shared: sentence about the
    overlap of several circuits, or empty.
    """
    if len(rows) > 1:
        return " ".join(
            filter(
                None,
                (
                    _several(rows, of),
                    shared,
                    verdict if verdict.startswith("Of the first") else verdict and f"Of the first: {verdict}",
                ),
            )
        )
    if verdict:
        return verdict
    kept, scores = rows[0]["kept"], rows[0]["scores"]
    text = (
        f"The circuit keeps {kept['total']:,} of {of['total']:,} neurons ({kept['head']} of {of['head']} heads, {kept['mlp']} of "
        f"{of['mlp']} MLPs)"
    )
    if is_on_text(scores):
        return (
            f"{text}. On held-out text its perplexity is {scores['perplexity']['mean']:.3f}, and its KL to the full model "
            f"{scores['kl']['mean']:.3f} nats a token."
        )
    if not {"kl", "exact_match", "accuracy"} <= scores.keys():
        return text + "."
    return (
        f"{text}. On held-out prompts its KL to the full model is {scores['kl']['mean']:.3f} nats; its likeliest token is the full "
        f"model's on {scores['exact_match']['mean']:.0%}, and it prefers the right answer on {scores['accuracy']['mean']:.0%}."
    )


def _several(rows: Sequence[Json], of: Mapping[str, int]) -> str:
    """Describe sizes and faithfulness of several circuits."""
    neurons, heads = (range_text([row["kept"][name] for row in rows], ",") for name in ("total", "head"))
    text = f"The {len(rows)} circuits keep {neurons} of {of['total']:,} neurons ({heads} of {of['head']} heads)"
    if not all("kl" in row["scores"] for row in rows):
        return text + "."
    name = "perplexity" if all(is_on_text(row["scores"]) for row in rows) else "exact_match"
    kl, same = ([row["scores"][name]["mean"] for row in rows] for name in ("kl", name))
    if name == "perplexity":
        return f"{text} at a held-out KL of {range_text(kl, '.3f')} nats a token and a perplexity of {range_text(same, '.3f')}."
    return (
        f"{text} at a held-out KL of {range_text(kl, '.3f')} nats; their likeliest token is the full model's on "
        f"{range_text(same, '.0%')} of the prompts."
    )


def tiles(rows: Sequence[Json], of: Mapping[str, int], heads: Json | None) -> list[Tile]:
    """Make the tiles: sizes, headline scores and overlap.

    rows: rows of summary.json. of: number of nodes of the model. heads: pairwise overlap of heads, where there are several
    circuits.
    """
    found = []
    kinds = (
        ("total", "neurons kept"),
        ("head", "heads"),
        ("mlp", "MLPs"),
        ("mixer_head", "mixer heads"),
        ("expert", "experts"),
    )
    for name, label in kinds:
        if not of.get(name):
            continue
        values = [row["kept"][name] for row in rows]
        share = range_text([value / of[name] for value in values], ".0%")
        found.append(Tile(range_text(values, ","), label, f"of {count_text(of[name])}, {share}"))
    if all("parameters_kept" in row for row in rows):
        share = range_text([row["parameters_kept"] for row in rows], ".1%")
        found.append(Tile(share, "parameters", "of the decoder layers"))
    for name, kind in SCORES.items():
        scores = [row["scores"][name] for row in rows if name in row["scores"]]
        if kind.headline and len(scores) == len(rows):
            ends = [format(scores[0][end], kind.headline) for end in ("low", "high")]
            unit = "text" if is_on_text(rows[0]["scores"]) else "pairs"
            detail = f"95%: {' to '.join(ends)}" if len(rows) == 1 else f"on held-out {unit}"
            found.append(Tile(range_text([score["mean"] for score in scores], kind.headline), kind.heading, detail))
    if len(rows) > 1 and heads is not None:
        found.append(Tile(f"{heads['mean']:.2f}", "Jaccard of heads", f"by chance {heads['chance']:.2f}"))
    return found
