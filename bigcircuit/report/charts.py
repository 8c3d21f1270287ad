"""Figures of a page, section by section."""

from collections.abc import Mapping, Sequence

import numpy as np

from bigcircuit.attribution.baselines import METHOD_LABELS
from bigcircuit.circuit.overlap import Stability
from bigcircuit.gates.parametrisation import PARAMETRISATIONS
from bigcircuit.io.files import Json
from bigcircuit.metrics.registry import SCORES
from bigcircuit.model.granularity import NODE_NAMES
from bigcircuit.report.drawing import Drawing, Grid
from bigcircuit.report.figures import Chart, Line, bars, lines, scatter
from bigcircuit.report.maps import heatmap, model_map, neuron_map
from bigcircuit.results.run import RunCircuit

_VALIDATION = "validation, rounded gates, the size asked for"
_NAMED = 8
"""Most circuits for which the lines have names at their ends."""


def training_charts(members: Mapping[str, RunCircuit]) -> list[Chart]:
    """Draw KL and size by step: faint lines for the gates of training, strong lines for validation, one of each per circuit."""
    many = len(members) > 1
    found = []
    for key, title, measured, checked, y_label in (
        ("training_kl", "KL by step", "kl", "validation.kl", SCORES["kl"].heading),
        ("training_size", "Neurons open by step", "open.total", "validation.kept.total", "site neurons"),
    ):
        seen = " or ".join(dict.fromkeys(_in_training(m, key == "training_kl") for m in members.values()))
        series = []
        for index, (name, member) in enumerate(members.items()):
            tip, place = (name, index) if many else ("", None)
            end = name if 1 < len(members) <= _NAMED and key == "training_kl" else ""
            for label, column, kind, name_at_end in (
                (seen, measured, "faint", ""),
                (_VALIDATION, checked, "line", end),
            ):
                x, y = _points(member.metrics, column)
                series.append(Line(label=label, x=x, y=y, tip=tip, member=place, kind=kind, end=name_at_end))
        found.append(lines(key, title, series, "step", y_label, log=key == "training_kl", marked=True))
    return [chart for chart in found if chart]


def _in_training(member: RunCircuit, kl: bool) -> str:
    """Describe the gates for which training logs KL, or else the size."""
    gates, parametrisation = member.about.get("config", {}).get("gates", {}), member.row.get("parametrisation", "")
    if kl and gates.get("sampled_sizes"):
        return "in training, at sizes of all kinds"
    known = PARAMETRISATIONS.get(parametrisation)
    if known is None:
        return "in training"
    if kl and known.exact_sizes and gates.get("look_ahead"):
        return "in training, one batch at a size drawn while sizes fall"
    return known.training_kl if kl else known.training_size


def _points(rows: Sequence[Json], key: str) -> tuple[list[float], list[float]]:
    """Select steps and values of the lines of metrics.jsonl that have a key."""
    found = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
    return [step for step, _ in found], [value for _, value in found]


def population_charts(rows: Sequence[Json]) -> list[Chart]:
    """Draw size against held-out KL, one mark per circuit; nothing unless there are several circuits with scores."""
    return [scatter(rows)] if len(rows) > 1 and all("kl" in row["scores"] for row in rows) else []


def similarity_charts(names: Sequence[str], stability: Mapping[str, Stability]) -> list[Chart]:
    """Draw the pairwise Jaccard index of heads and of all neurons."""
    return [
        heatmap(f"jaccard_{level}", f"Jaccard of {NODE_NAMES[level]}", stability[level].matrix, names)
        for level in ("head", "total")
        if level in stability
    ]


def overlap_charts(overlap: Mapping[str, Json]) -> list[Chart]:
    """Draw the Jaccard index at every granularity beside its expected value by chance; with more than two circuits pair means."""
    values = {
        "Jaccard": [o["pairs"]["mean"] for o in overlap.values()],
        "by chance": [o["pairs"]["chance"] for o in overlap.values()],
    }
    return [bars("overlap", "Jaccard of two circuits", [NODE_NAMES[n] for n in overlap], values, "Jaccard")]


def ranking_charts(evaluation: Json) -> list[Chart]:
    """Draw size against KL of every ranking, one chart per ablation and level."""
    found = []
    for ablation, rankings in evaluation["curves"].items():
        for level in dict.fromkeys(one["level"] for one in rankings):
            chosen = [one for one in rankings if one["level"] == level]
            several = len({one["circuit"] for one in chosen if one["circuit"]}) > 1
            series = [_ranking(one, several) for one in chosen]
            what, nodes, note = "all neurons", "site neurons kept", ""
            if level == "neuron":
                series += _found(evaluation, ablation, several)
            else:
                what, nodes = NODE_NAMES[level], f"{NODE_NAMES[level]} kept"
                note = f"Only {what} are closed; all else stays open."
            title = f"Ranking {what}, {ablation.replace('_', ' ')} ablation"
            key, y = f"size_{level}_{ablation}", f"held-out {SCORES['kl'].heading}"
            found.append(lines(key, title, series, nodes, y, log=True, log_x=True, marked=True, note=note))
    return [chart for chart in found if chart]


def _ranking(one: Json, several: bool) -> Line:
    method = METHOD_LABELS.get(one["method"]) or str(one["method"])
    label = f"{method} of {one['circuit']}" if several and one["circuit"] else method
    # The full model has a KL of 0 and the empty circuit no node: logarithmic axes have no place for them.
    points = [p for p in one["points"] if p["fraction"] < 1 and p["size"]]
    tip = f"{label}: CPR {one['cpr']:.3f}, CMD {one['cmd']:.3f}"
    return Line(label=label, x=[p["size"] for p in points], y=[p["kl"] for p in points], tip=tip, band=_band(points))


def _band(points: Sequence[Json]) -> list[tuple[float, float]]:
    """Select the intervals of KL; empty for older files, which have none."""
    return [(p["kl_low"], p["kl_high"]) for p in points if "kl_low" in p]


def _found(evaluation: Json, ablation: str, several: bool) -> list[Line]:
    """Make a mark with an interval of every circuit that was found on the first circuit's task."""
    own = [c for c in evaluation["circuits"] if ablation in c["ablations"] and not c["control"]]
    found = []
    for circuit in own:
        kl = circuit["ablations"][ablation]["circuit"]["kl"]
        if circuit["task"] == own[0]["task"]:
            label = f"circuit {circuit['name']}" if several else "this circuit"
            bounds = (kl["low"], kl["high"])
            found.append(Line(label=label, x=[circuit["kept"]["total"]], y=[kl["mean"]], kind="star", band=[bounds]))
    return found


def partial_charts(evaluation: Json) -> list[Chart]:
    """Draw KL against the share of the complement that is open, one chart per ablation."""
    found = []
    for ablation in dict.fromkeys(a for circuit in evaluation["circuits"] for a in circuit["ablations"]):
        series = []
        for circuit in evaluation["circuits"]:
            points = circuit["ablations"].get(ablation, {}).get("partial", [])
            x = [100 * p["fraction"] for p in points]
            several = len(evaluation["circuits"]) > 1
            name = circuit["name"] if several else "mean of draws"
            series.append(Line(label=name, x=x, y=[p["kl"] for p in points], band=_band(points)))
            if not several:
                series.append(Line(label="worst draw", x=x, y=[p["kl_max"] for p in points]))
        title = f"With a part of the rest, {ablation.replace('_', ' ')} ablation"
        x_label, y_label = "share of the rest that is open, %", SCORES["kl"].heading
        found.append(lines(f"partial_{ablation}", title, series, x_label, y_label, marked=True))
    return [chart for chart in found if chart]


def map_charts(drawings: Mapping[str, Drawing]) -> list[Chart]:
    """Draw drawings as figures for papers; the page has its own. Of several circuits over each other only the neurons."""
    found = []
    for name, drawing in drawings.items():
        if drawing.circuits == 1:
            wide = max(1, *(len(layer.heads) for layer in drawing.layers))
            heads = np.full((len(drawing.layers), wide), np.nan)
            for row, layer in zip(heads, drawing.layers, strict=True):
                row[: len(layer.heads)] = [node.total / node.of for node in layer.heads]
            mlps = np.array([layer.mlp.total / max(layer.mlp.of, 1) for layer in drawing.layers])
            found.append(model_map(f"model_{name}", f"What {name} keeps", heads, mlps))
        sites = {
            "attention neurons, head by head": _rows([layer.attention_grid for layer in drawing.layers]),
            "MLP neurons": _rows([layer.mlp_grid for layer in drawing.layers]),
        }
        shades = [
            (colour, alpha / 255) for colour, alpha in zip(drawing.palette.colours, drawing.palette.alphas, strict=True)
        ]
        found.append(neuron_map(f"neurons_{name}", f"Neurons of {name}", sites, shades, drawing.palette.names))
    return found


def _rows(grids: Sequence[Grid]) -> np.ndarray:
    """Stack the categories of one site, uint8 [layers, neurons]; 0 where a layer has fewer neurons."""
    rows = [grid.row for grid in grids]
    width = max(map(len, rows))
    return np.stack([np.pad(row, (0, width - len(row))) for row in rows])
