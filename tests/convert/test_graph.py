"""The graph of a circuit: its edges and scores, and their order."""

import torch

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.masks import complete_masks
from bigcircuit.convert.graph import edges_of, graph_of, reader_names, real_edges, writer_names
from bigcircuit.convert.nodes import nodes_on_paths
from tests.helpers.foreign_circuits import FFN, HEADS, LAYERS, NAMES, SHAPES, graph


def circuit(log_alpha=None) -> Circuit:
    masks = {
        "head": torch.tensor([[True, False, False, True]] * LAYERS),
        "mlp_neuron": torch.tensor([[True] * FFN, [False] * FFN, [True] + [False] * (FFN - 1)]),
    }
    return Circuit(complete_masks(masks, SHAPES), log_alpha or {}, {"ablation": "zero"})


def test_names_and_edges_are_those_of_eap_ig():
    known = graph()
    assert writer_names(LAYERS, HEADS) == NAMES
    sources, places = writer_names(LAYERS, HEADS), reader_names(LAYERS, HEADS)
    made = {f"{sources[row]}->{places[column]}" for row, column in real_edges(LAYERS, HEADS, False).nonzero().tolist()}
    assert made == set(known["edges"])
    parallel = {f"{sources[r]}->{places[c]}" for r, c in real_edges(LAYERS, HEADS, True).nonzero().tolist()}
    assert made - parallel == {f"a{i}.h{h}->m{i}" for i in range(LAYERS) for h in range(HEADS)}
    assert len(sources) == 1 + LAYERS * (HEADS + 1) and len(places) == LAYERS * (3 * HEADS + 1) + 1


def test_a_circuit_without_edges_keeps_all_among_its_nodes():
    made = graph_of(circuit(), SHAPES, "", parallel=False, source="x")
    kept = {name for name, is_kept in made.kept_nodes().items() if is_kept}
    assert kept == {f"a{i}.h{h}" for i in range(LAYERS) for h in (0, 3)} | {"m0", "m2"}
    assert {str(n) for n in nodes_on_paths(edges_of(made.edge_kept, LAYERS, HEADS))} and made.in_part == 1
    assert made.node_scores()["a0.h0"] == 1 and made.node_scores()["m1"] == 0


def test_trained_gates_score_nodes_and_an_edge_has_the_smaller_score():
    log_alpha = {"head": torch.tensor([[2.0, -1, -1, 1]] * LAYERS), "mlp_neuron": torch.full((LAYERS, FFN), -0.5)}
    made = graph_of(circuit(log_alpha), SHAPES, "", parallel=False, source="x")
    scores = made.node_scores()
    assert scores["a1.h0"] > scores["a1.h3"] > scores["a1.h1"]
    row, column = writer_names(LAYERS, HEADS).index("a0.h0"), reader_names(LAYERS, HEADS).index("a1.h3<k>")
    assert made.edge_scores[row, column] == torch.tensor(min(scores["a0.h0"], scores["a1.h3"]))
    assert made.edge_scores.isfinite().all()
