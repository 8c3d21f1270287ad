"""Which figures a page has, section by section."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bigcircuit.evaluation.comparison import Stability
from bigcircuit.report.drawing import Drawing
from bigcircuit.report.figures import Chart, Line, bars, heatmap, lines, model_map, scatter
from bigcircuit.report.sources import Json, Source

METHODS = {
    "learned": "learned gates",
    "integrated_gradients": "integrated gradients",
    "attribution_patching": "attribution patching",
    "head_importance": "head importance",
    "activation_magnitude": "activation magnitude",
    "random": "random order",
}
GRANULARITY = {
    "total": "all neurons",
    "block": "blocks",
    "attention": "attention sub-layers",
    "mlp": "MLP sub-layers",
    "kv_group": "key/value groups",
    "head": "heads",
    "attention_neuron": "attention neurons",
    "mlp_neuron": "MLP neurons",
    "mlp_output": "MLP outputs",
}


def training(source: Source) -> list[Chart]:
    """KL and size by step; of a population its validated values, a line a member."""
    rows, many = source.metrics, len(source.members) > 1
    found = []
    for key, title, measured, checked, y in (
        ("training_kl", "KL by step", "kl", "validation.kl", "KL, nats"),
        ("training_size", "Neurons open by step", "open.total", "validation.kept.total", "site neurons"),
    ):
        if many:
            series = [
                Line(f"member {m.name}", *_points(rows, index, checked), member=index)
                for index, m in enumerate(source.members)
            ]
        else:
            series = [
                Line(_in_training(source, key == "training_kl"), *_points(rows, 0, measured)),
                Line("validation, discretised", *_points(rows, 0, checked)),
            ]
        found.append(lines(key, title, series, "step", y, log=key == "training_kl" and _positive(series)))
    return [chart for chart in found if chart]


_IN_TRAINING = {
    "hard_concrete": ("in training, with noise", "expected"),
    "straight_through": ("in training, with noise, rounded", "expected"),
    "sigmoid_top_k": ("in training, soft gates", "sum of the soft gates"),
    "straight_through_top_k": ("in training, rounded gates", "sum of the soft gates"),
}
"""By parametrisation which KL and which size training sees."""


def _in_training(source: Source, kl: bool) -> str:
    gates = (source.setup or {}).get("config", {}).get("gates", {})
    if kl and gates.get("sampled_sizes"):
        return "in training, at sizes of all kinds"
    found = _IN_TRAINING.get(source.members[0].row.get("parametrisation", ""))
    return "in training" if found is None else found[0 if kl else 1]


def _positive(series: Sequence[Line]) -> bool:
    return all(value > 0 for line in series for value in line.y)


def _points(rows: Sequence[Json], member: int, key: str) -> tuple[list[float], list[float]]:
    found = [(row["step"], row[key]) for row in rows if row.get("member") == member and row.get(key) is not None]
    return [step for step, _ in found], [value for _, value in found]


def population(source: Source) -> list[Chart]:
    """Size against held-out KL, a mark a member."""
    return [scatter([{**m.row, "member": m.name} for m in source.members])] if len(source.members) > 1 else []


def similarity(names: Sequence[str], stability: Mapping[str, Stability]) -> list[Chart]:
    """Pairwise Jaccard of heads and of all neurons."""
    return [
        heatmap(f"jaccard_{level}", f"Jaccard of {GRANULARITY[level]}", stability[level].matrix, names)
        for level in ("head", "total")
        if level in stability
    ]


def shared(overlap: Mapping[str, Json]) -> list[Chart]:
    """Jaccard at every granularity beside what chance gives."""
    values = {"Jaccard": [o["jaccard"] for o in overlap.values()], "by chance": [o["chance"] for o in overlap.values()]}
    return [bars("overlap", "Overlap by granularity", [GRANULARITY[n] for n in overlap], values, "Jaccard")]


def curves(evaluation: Json) -> list[Chart]:
    """Size against faithfulness of every ranking, by ablation and level."""
    found = []
    for ablation, rankings in evaluation["curves"].items():
        for level in dict.fromkeys(one["level"] for one in rankings):
            chosen = [one for one in rankings if one["level"] == level]
            several = len({one["circuit"] for one in chosen if one["circuit"]}) > 1
            series = [_ranking(one, several) for one in chosen]
            if level == "neuron":
                series += _found(evaluation, ablation, several)
            nodes = "site neurons kept" if level == "neuron" else f"{GRANULARITY[level]} kept"
            what = "all neurons" if level == "neuron" else GRANULARITY[level]
            title = f"Ranking {what}, {ablation.replace('_', ' ')} ablation"
            log = all(value > 0 for line in series for value in line.y)
            found.append(
                lines(f"size_{level}_{ablation}", title, series, nodes, "held-out KL, nats", log=log, marked=True)
            )
    return [chart for chart in found if chart]


def _ranking(one: Json, several: bool) -> Line:
    label = METHODS.get(one["method"], one["method"]) + (f" of {one['circuit']}" if several and one["circuit"] else "")
    # The full model has a KL of 0, which a logarithmic axis has no place for.
    points = [p for p in one["points"] if p["fraction"] < 1]
    tip = f"{label}: CPR {one['cpr']:.3f}, CMD {one['cmd']:.3f}"
    return Line(label, [p["size"] for p in points], [p["kl"] for p in points], tip)


def _found(evaluation: Json, ablation: str, several: bool) -> list[Line]:
    """The circuits themselves, each as one mark."""
    own = [c for c in evaluation["circuits"] if ablation in c["ablations"] and not c["control"]]
    return [
        Line(
            f"circuit {c['name']}" if several else "this circuit",
            [c["kept"]["total"]],
            [c["ablations"][ablation]["circuit"]["kl"]["mean"]],
        )
        for c in own
        if c["task"] == own[0]["task"]
    ]


def partial(evaluation: Json) -> list[Chart]:
    """KL while more and more of the complement is opened, by ablation."""
    found = []
    for ablation in dict.fromkeys(a for circuit in evaluation["circuits"] for a in circuit["ablations"]):
        series = []
        for circuit in evaluation["circuits"]:
            points = circuit["ablations"].get(ablation, {}).get("partial", [])
            x = [100 * p["fraction"] for p in points]
            several = len(evaluation["circuits"]) > 1
            series.append(Line(circuit["name"] if several else "mean of draws", x, [p["kl"] for p in points]))
            if not several:
                series.append(Line("worst draw", x, [p["kl_max"] for p in points]))
        title = f"With a part of the rest, {ablation.replace('_', ' ')} ablation"
        found.append(
            lines(f"partial_{ablation}", title, series, "share of the rest that is open, %", "KL, nats", marked=True)
        )
    return [chart for chart in found if chart]


def maps(drawings: Mapping[str, Drawing]) -> list[Chart]:
    """The drawing of each circuit as one figure for papers; the page draws them itself."""
    found = []
    for name, drawing in drawings.items():
        wide = max(len(layer.heads) for layer in drawing.layers)
        heads = np.full((len(drawing.layers), wide), np.nan)
        for row, layer in zip(heads, drawing.layers, strict=True):
            row[: len(layer.heads)] = [node.total / node.of for node in layer.heads]
        mlps = np.array([layer.mlp.total / max(layer.mlp.of, 1) for layer in drawing.layers])
        found.append(model_map(f"model_{_file_name(name)}", f"What {name} keeps", heads, mlps))
    return found


def _file_name(name: Any) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in str(name))
