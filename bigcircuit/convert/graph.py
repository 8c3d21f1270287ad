"""A circuit as a graph of heads and MLPs: what formats of other tools hold, and what a circuit file keeps of them.

Nodes that write: `input`, then for every layer its heads `a<l>.h<h>` and its MLP `m<l>`; n = 1 + L (H + 1). Places that nodes
read at: for every layer the queries of its heads, their keys, their values, then the MLP, and last `logits`; m = L (3 H + 1) + 1.
This is the order of EAP-IG. Heads are query heads.

A circuit file keeps, as `extra.<name>`: `head_score` float32 [L, H] and `mlp_score` float32 [L, 1], NaN for nodes without a score;
`edge_score` float32 [n, m] and `edge_kept` bool [n, m].
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bigcircuit.convert.nodes import END, START, Edge, Node, nodes_on_paths
from bigcircuit.errors import UserError
from bigcircuit.model.granularity import GRANULARITIES, LayerShape

if TYPE_CHECKING:
    from torch import Tensor

    from bigcircuit.circuit.circuit import Circuit


_PARALLEL = {"gptj": True, "phi": True, "cohere": True, "cohere2": True}
"""Model types whose MLPs read what attention reads; of others a setting says so."""
_PARALLEL_SETTINGS = ("use_parallel_residual", "parallel_attn", "new_decoder_architecture")


def is_parallel(config: Any) -> bool:
    """Whether the MLPs of a model do not read the heads of their layer. config: of Hugging Face."""
    return _PARALLEL.get(config.model_type, any(getattr(config, name, False) for name in _PARALLEL_SETTINGS))


def writer_names(layers: int, heads: int) -> list[str]:
    """Names of the nodes that write, in order."""
    inside = [name for layer in range(layers) for name in (*(f"a{layer}.h{h}" for h in range(heads)), f"m{layer}")]
    return ["input", *inside]


def reader_names(layers: int, heads: int) -> list[str]:
    """Names of the places that nodes read at, in order."""
    inside = [
        name
        for layer in range(layers)
        for name in (*(f"a{layer}.h{h}<{letter}>" for letter in "qkv" for h in range(heads)), f"m{layer}")
    ]
    return [*inside, "logits"]


def writers(layers: int, heads: int) -> list[Node]:
    """The nodes that write, in order."""
    return [START, *(Node(layer, h) for layer in range(layers) for h in (*range(heads), None))]


def readers(layers: int, heads: int) -> list[Node]:
    """The nodes that read, in the order of their places; a head three times."""
    return [*(Node(layer, h) for layer in range(layers) for h in (*(list(range(heads)) * 3), None)), END]


def real_edges(layers: int, heads: int, parallel: bool) -> "Tensor":
    """Which pairs of writer and place are edges, bool [n, m]. parallel: whether an MLP does not read the heads of its layer."""
    import torch

    rank = [node.layer * 2 + (node.head is None and not parallel) for node in writers(layers, heads)[1:]]
    reader_rank = [node.layer * 2 + (node.head is None and not parallel) for node in readers(layers, heads)[:-1]]
    return torch.tensor([[*reader_rank, 2 * layers + 2]]) > torch.tensor([[-1, *rank]]).T


class GraphCircuit(NamedTuple):
    """A circuit as other tools have it: heads and MLPs, each kept or not, with scores and edges."""

    shapes: Sequence[LayerShape]
    heads: "Tensor"
    """Kept heads, bool [L, H]."""
    mlps: "Tensor"
    """Kept MLPs, bool [L, 1]."""
    head_scores: "Tensor"
    """float32 [L, H]."""
    mlp_scores: "Tensor"
    """float32 [L, 1]."""
    edge_kept: "Tensor"
    """bool [n, m]."""
    edge_scores: "Tensor"
    """float32 [n, m]."""
    in_part: int
    """Heads and MLPs of which some neurons are closed."""
    circuit: "Circuit"
    parallel: bool
    """Whether an MLP does not read the heads of its layer."""
    model_type: str
    """Model type of the Hugging Face config; empty where the model was not named."""
    task: str

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.shapes)

    @property
    def heads_per_layer(self) -> int:
        """Number of query heads of a layer."""
        return self.shapes[0].heads

    def node_scores(self) -> dict[str, float]:
        """Scores of heads and MLPs by name, in the order of writing."""
        names = writer_names(self.layers, self.heads_per_layer)[1:]
        return dict(zip(names, _in_order(self.head_scores, self.mlp_scores).tolist(), strict=True))

    def kept_nodes(self) -> dict[str, bool]:
        """Whether heads and MLPs are kept, by name, in the order of writing."""
        names = writer_names(self.layers, self.heads_per_layer)[1:]
        return dict(zip(names, _in_order(self.heads, self.mlps).tolist(), strict=True))

    def notes(self) -> list[str]:
        """What a graph of heads and MLPs cannot say of the circuit."""
        if not self.in_part:
            return []
        return [f"{self.in_part} heads and MLPs are kept in part; in this format a node is kept whole"]


def _in_order(heads: "Tensor", mlps: "Tensor") -> "Tensor":
    """Lay out values of heads [L, H] and MLPs [L, 1] in the order of writing, without `input`."""
    import torch

    return torch.cat([heads, mlps], dim=1).flatten()


def graph_of(
    circuit: "Circuit", shapes: Sequence[LayerShape], model_type: str, *, parallel: bool, source: str
) -> GraphCircuit:
    """Make the graph of a circuit: kept edges and scores of the file it was converted from where they belong to its nodes.

    Other circuits keep all edges among kept nodes. A score of an edge is then the smaller one of its two nodes'. A head or MLP is
    kept if any of its neurons is. Raises UserError for layers without heads, with different numbers of them or with mixers that are
    no attention, and for scores of nodes and edges that are not of this model.
    """
    import torch

    from bigcircuit.attribution.node_scores import strengths

    layers, heads = len(shapes), shapes[0].heads
    if not heads or any(shape.heads != heads for shape in shapes):
        raise UserError(
            f"{source}: its layers have no heads or different numbers of them, and the graphs of other tools have one number"
        )
    if any(shape.mixer_heads for shape in shapes):
        raise UserError(
            f"{source}: its model has mixers that are no attention (linear attention, state space models, convolutions), which the "
            "formats of other tools do not hold"
        )
    kept_heads, kept_mlps = circuit.masks["head"], circuit.masks["mlp"]
    extra = _checked_extra(circuit.extra, layers, heads, source)
    if {"head_score", "mlp_score"} <= extra.keys():
        head_scores, mlp_scores = extra["head_score"], extra["mlp_score"]
    elif circuit.log_alpha:
        ranked = strengths(circuit.log_alpha, shapes)
        head_scores, mlp_scores = ranked["head"], ranked["mlp"]
    else:
        head_scores, mlp_scores = kept_heads.float(), kept_mlps.float()
    real = real_edges(layers, heads, parallel)
    edge_kept, edge_scores = extra.get("edge_kept"), extra.get("edge_score")
    nodes = {Node(layer, h) for layer, row in enumerate(kept_heads.tolist()) for h, kept in enumerate(row) if kept}
    nodes |= {Node(layer, None) for layer, (kept,) in enumerate(kept_mlps.tolist()) if kept}
    if edge_kept is None or nodes_on_paths(edges_of(edge_kept, layers, heads)) != nodes:
        written = torch.tensor([True, *_in_order(kept_heads, kept_mlps).tolist()])
        edge_kept = real & written.unsqueeze(1) & _at_places(written, layers, heads, True)
    if edge_scores is None:
        scores = torch.tensor([torch.inf, *_in_order(head_scores, mlp_scores).tolist()])
        pairs = torch.minimum(scores.unsqueeze(1), _at_places(scores, layers, heads, torch.inf))
        largest = pairs[pairs.isfinite()].max() if pairs.isfinite().any() else torch.tensor(1.0)
        edge_scores = torch.where(real, pairs.clamp(max=float(largest)), 0.0)
    return GraphCircuit(
        shapes=shapes,
        heads=kept_heads,
        mlps=kept_mlps,
        head_scores=head_scores,
        mlp_scores=mlp_scores,
        edge_kept=edge_kept,
        edge_scores=edge_scores,
        in_part=_in_part(circuit, shapes),
        circuit=circuit,
        parallel=parallel,
        model_type=model_type,
        task=Path(circuit.metadata.get("task", "")).stem,
    )


def _checked_extra(extra: "Mapping[str, Tensor]", layers: int, heads: int, source: str) -> "Mapping[str, Tensor]":
    """Return the scores and edges of a circuit file. Raises UserError for those of another size or type."""
    import torch

    edges = 1 + layers * (heads + 1), layers * (3 * heads + 1) + 1
    sizes = {"head_score": (layers, heads), "mlp_score": (layers, 1), "edge_score": edges, "edge_kept": edges}
    for name, size in sizes.items():
        dtype = torch.bool if name == "edge_kept" else torch.float32
        if name in extra and (tuple(extra[name].shape) != size or extra[name].dtype != dtype):
            raise UserError(
                f"{source}: tensor extra.{name} is no {str(dtype).removeprefix('torch.')} of {size[0]} x {size[1]}; convert the "
                "other tool's file again"
            )
    return extra


def _at_places(values: "Tensor", layers: int, heads: int, at_logits: float | bool) -> "Tensor":
    """Values of the nodes at the places they read at, [m]. values: [n], of the nodes that write."""
    import torch

    by_layer = values[1:].view(layers, heads + 1)
    rows = torch.cat([by_layer[:, :heads].repeat(1, 3), by_layer[:, heads:]], dim=1).flatten()
    return torch.cat([rows, rows.new_full((1,), at_logits)])


def _in_part(circuit: "Circuit", shapes: Sequence[LayerShape]) -> int:
    """Count the kept heads and MLPs of which a neuron is closed."""
    count = 0
    for index, shape in enumerate(shapes):
        neurons = circuit.masks["attention_neuron"][index, : shape.heads * shape.head_dim].view(shape.heads, -1)
        count += int((neurons.any(1) & ~neurons.all(1)).sum())
        leaves = ("mlp_neuron", "mlp_output", "expert", "expert_neuron")
        rows = [circuit.masks[n][index, : GRANULARITIES[n].width(shape)] for n in leaves if n in circuit.masks]
        count += int(circuit.masks["mlp"][index].any() and not all(bool(row.all()) for row in rows))
    return count


def edges_of(kept: "Tensor", layers: int, heads: int) -> list[Edge]:
    """List the kept edges, bool [n, m], as pairs of nodes."""
    sources, places = writers(layers, heads), readers(layers, heads)
    return [(sources[row], places[column]) for row, column in kept.nonzero().tolist()]


def node_extra(scores: Mapping[Node, float], shapes: Sequence[LayerShape]) -> "dict[str, Tensor]":
    """Lay out node scores for a circuit file; NaN for nodes without one. Empty without scores."""
    import torch

    if not scores:
        return {}
    heads = torch.full((len(shapes), max(shape.heads for shape in shapes)), torch.nan)
    mlps = torch.full((len(shapes), 1), torch.nan)
    for node, score in scores.items():
        if node not in (START, END):
            (mlps if node.head is None else heads)[node.layer, node.head or 0] = score
    return {"head_score": heads, "mlp_score": mlps}
