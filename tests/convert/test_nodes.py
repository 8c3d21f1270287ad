"""Nodes on kept paths."""

from bigcircuit.convert.nodes import END, START, Node, masks_of_nodes, nodes_on_paths, parse_node
from bigcircuit.model.granularity import LayerShape


def test_paths_by_hand():
    assert nodes_on_paths([(START, END)]) == set()
    assert nodes_on_paths([]) == set()


def test_names_are_parsed_where_the_model_has_the_node():
    shapes = [LayerShape(heads=2, kv_heads=1, head_dim=4, intermediate=6, hidden=8)] * 2
    assert parse_node("a1.h1", shapes) == Node(1, 1) and parse_node("m0", shapes) == Node(0, None)
    assert not any(parse_node(name, shapes) for name in ("a1.h2", "a2.h0", "m2", "m0.q", "a0", "input", "m-1"))


def test_numbers_of_any_length_are_names_of_no_node():
    shapes = [LayerShape(heads=2, kv_heads=1, head_dim=4, intermediate=6, hidden=8)] * 2
    long = "9" * 5000
    assert not any(parse_node(name, shapes) for name in (f"a{long}.h0", f"a0.h{long}", f"m{long}"))


def test_all_neurons_of_a_node_are_kept_and_no_others():
    shapes = [LayerShape(heads=2, kv_heads=1, head_dim=2, intermediate=3, hidden=4)] * 2
    masks = masks_of_nodes([Node(0, 1), Node(1, None)], shapes)
    assert masks["attention_neuron"].tolist() == [[False, False, True, True], [False] * 4]
    assert masks["mlp_neuron"].tolist() == [[False] * 3, [True] * 3]
    assert masks["head"].tolist() == [[False, True], [False, False]] and masks["block"].tolist() == [[True], [True]]
