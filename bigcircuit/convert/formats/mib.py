"""Submissions to the circuit track of MIB, `<method>_<ablation>_<level>/<task>_<model>/importances.pt`, and a local check."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bigcircuit.config.plain import check_name
from bigcircuit.convert.formats import eap_ig_pt
from bigcircuit.convert.graph import GraphCircuit, real_edges
from bigcircuit.convert.mib_folder import check_columns, check_method, model_name
from bigcircuit.errors import UserError
from bigcircuit.io.files import check_writable

if TYPE_CHECKING:
    from torch import Tensor

NAME = "MIB submission"
RULE = "Written only: a folder with the scores of all heads and MLPs; the leaderboard takes the top share of each size."
TO, SUFFIX = "mib", ""
SIZES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Shares of the scored nodes at which a submission is evaluated; the whole model is the tenth."""
_ABLATIONS = {"interchange": "patching", "mean": "mean", "zero": "zero", "optimal": "optimal"}
"""Our ablation -> its name there."""


def write(graph: GraphCircuit, path: Path) -> list[str]:
    """Write the folder of one task and model below `path`, and check it. Returns notes."""
    ablation = _ABLATIONS.get(graph.circuit.ablation_name)
    if ablation is None:
        raise UserError(
            f"--to mib: {graph.circuit.ablation_name} ablation has no name there; use one of {', '.join(_ABLATIONS)}"
        )
    task = (graph.task or "task").replace("_", "-")
    # Of a path or a hub id the last part.
    model = model_name(Path(graph.circuit.metadata.get("model", "")).name or "model")
    check_name(f"{task}_{model}", f"--to mib: task and model of the circuit file, {task} and {model},")
    folder = path / f"bigcircuit_{ablation}_node" / f"{task}_{model}"
    if folder.exists():
        raise UserError(f"{folder}: exists already; move it, or name another folder with --output")
    check_writable(folder)
    notes = eap_ig_pt.write(graph, folder / "importances.pt")
    if ablation != "patching":
        notes.append(f"the leaderboard evaluates by patching, and this circuit was found under {ablation} ablation")
    names = [*check_columns(task, model), *check_method(folder.parent)]
    return [*notes, *names, *check_submission(graph), f"the submission is {folder}, of level node"]


def check_submission(graph: GraphCircuit) -> list[str]:
    """Say what the leaderboard's evaluation makes of the scores: nodes and edges at each size, and what is wrong.

    It takes the top share of the scored nodes, by score for CPR and by absolute score for CMD, all edges out of them, and removes
    what is then on no path.
    """
    import torch

    scores = torch.tensor(list(graph.node_scores().values()))
    scored = int(scores.isfinite().sum())
    notes = []
    if scored < len(scores):
        notes.append(f"{len(scores) - scored} nodes have no score: the evaluation keeps them at every size")
    if len(set(scores.tolist())) < scored // 2:
        notes.append(
            "many scores are equal, and equal ones are taken in the order of the nodes; trained gates rank better"
        )
    real = real_edges(graph.layers, graph.heads_per_layer, graph.parallel)
    if not int(SIZES[3] * scored):
        notes.append(f"the smallest sizes are empty: the model has {scored} scored nodes")
    rankings = (
        {"": scores} if (scores.nan_to_num() >= 0).all() else {"by score ": scores, "by absolute score ": scores.abs()}
    )
    for name, ranking in rankings.items():
        sizes = []
        for share in SIZES:
            kept, edges = _at_size(ranking, int(share * scored), real, graph)
            sizes.append(f"{share:g}: {kept} nodes, {edges} edges")
        notes.append(f"evaluated {name}at {'; '.join(sizes)}")
    return notes


def _at_size(scores: "Tensor", count: int, real: "Tensor", graph: GraphCircuit) -> tuple[int, int]:
    """Nodes and edges that remain of the `count` nodes with the largest scores, and of those without a score."""
    import torch

    from bigcircuit.convert.graph import edges_of
    from bigcircuit.convert.nodes import END, START, nodes_on_paths

    order = scores.nan_to_num(nan=-torch.inf).argsort(descending=True, stable=True)
    chosen = ~scores.isfinite()
    chosen[order[:count]] = True
    rows = torch.cat([torch.tensor([True]), chosen])
    edges = edges_of(real & rows.unsqueeze(1), graph.layers, graph.heads_per_layer)
    kept: Sequence = [*nodes_on_paths(edges)]
    alive = {START, END, *kept}
    return len(kept), sum(writer in alive and reader in alive for writer, reader in edges)
