"""Formats of other tools: which of them a file has, and which nodes its circuit keeps."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from bigcircuit.convert import formats
from bigcircuit.convert.formats import CONVERT_FORMATS, ConvertFormat, eap_ig, edge_pruning, recognise
from bigcircuit.convert.nodes import KeptNodes
from bigcircuit.errors import UserError
from tests.helpers.foreign_circuits import HEADS, NAMES, SHAPES, WIDTH, graph


@pytest.mark.parametrize("seed", range(8))
def test_kept_are_the_nodes_that_repeated_removal_leaves(seed):
    """Removal as EAP-IG does it: nodes without an edge in or out, then edges without an end, until nothing changes."""
    rng = random.Random(seed)
    every = list(graph()["edges"])
    chosen = rng.sample(every, rng.randint(10, 60))
    left = [(edge.split("->")[0], edge.split("->")[1].split("<")[0]) for edge in chosen]
    before = None
    while left != before:
        before = left
        writers, readers = {"logits"} | {w for w, _ in left}, {"input"} | {r for _, r in left}
        left = [(w, r) for w, r in left if w in readers and r in writers]
    expected = {end for edge in left for end in edge} - {"input", "logits"}
    same_nodes = eap_ig.read(graph(set(chosen), set(NAMES)), SHAPES, "graph")
    assert {f"m{n.layer}" if n.head is None else f"a{n.layer}.h{n.head}" for n in same_nodes.nodes} == expected
    assert str(len(NAMES) - 1 - len(expected)) in " ".join(same_nodes.notes), (
        "marked ones that are left out are counted"
    )


def edges_read(*edges: str):
    nodes = edge_pruning.read([edge.split(" ") for edge in edges], SHAPES, "edges").nodes
    return {f"m{n.layer}" if n.head is None else f"a{n.layer}.h{n.head}" for n in nodes}


def test_query_heads_of_a_group_share_its_key_and_value_edges():
    ends = [f"a1.h{h} resid_post" for h in range(HEADS)]
    assert edges_read("embeds a1.h1.k", *ends) == {"a1.h2", "a1.h3"}
    assert edges_read("embeds a1.h1.v", *ends[:3]) == {"a1.h2"}, "one that nothing reads is not kept"
    assert edges_read("embeds a1.h1.q", *ends) == {"a1.h1"}


def test_without_embeddings_every_node_reads_them():
    assert edges_read("a0.h0 m1", "m1 resid_post", "a2.h1 resid_post", "m0 a1.h0.q") == {"a0.h0", "m1", "a2.h1"}
    assert edges_read("a0.h0 m1", "m1 resid_post", "pos_embeds m1") == {"m1"}


def test_older_files_and_those_of_nodes_alone_are_read():
    old = graph()
    old["nodes"] = {name: entry["in_graph"] for name, entry in old["nodes"].items()}
    old["edges"] = {name: {"score": None, "in_graph": entry["in_graph"]} for name, entry in old["edges"].items()}
    assert eap_ig.read(old, SHAPES, "x").nodes == eap_ig.read(graph(), SHAPES, "x").nodes
    assert not eap_ig.read(old, SHAPES, "x").extra
    alone = graph(edges=set(), marked={"a0.h2", "m1"})
    alone["nodes"]["m1"] |= {"score": float("nan"), "neurons": [True] * 3 + [False] * (WIDTH - 3)}
    kept = eap_ig.read(alone, SHAPES, "x")
    assert kept.nodes == {(0, 2), (1, None)}
    assert [note.split(",")[0] for note in kept.notes] == ["it keeps no edge", "its neurons"]


def format_of(name: str, recognises: Callable[[Any], bool]) -> ConvertFormat:
    """A format that reads nothing."""
    return ConvertFormat(name=name, rule="", recognises=recognises, read=lambda *_: KeptNodes(set()))


PRUNED_HEADS = format_of(
    "pruned heads", lambda data: isinstance(data, list) and bool(data) and isinstance(data[0], dict)
)
"""A second format that is a list, and whose entries have keys of their own."""


@pytest.mark.parametrize("first", [True, False])
def test_a_second_format_of_lists_is_told_from_the_first_in_any_order(monkeypatch, first):
    new = {PRUNED_HEADS.name: PRUNED_HEADS}
    monkeypatch.setattr(formats, "CONVERT_FORMATS", new | CONVERT_FORMATS if first else CONVERT_FORMATS | new)
    assert recognise([{"layer": 0, "head": 1}], "heads.json") is PRUNED_HEADS
    assert recognise([["a0.h0", "m0"]], "edges.json").name == edge_pruning.NAME
    assert recognise(graph(), "graph.json").name == eap_ig.NAME


def test_a_file_that_two_formats_recognise_is_refused_with_both_names(monkeypatch):
    greedy = format_of("pruned heads", lambda data: isinstance(data, list))
    monkeypatch.setattr(formats, "CONVERT_FORMATS", CONVERT_FORMATS | {greedy.name: greedy})
    with pytest.raises(UserError, match=r"edges.json: could be Edge-Pruning edges or pruned heads"):
        recognise([["a0.h0", "m0"]], "edges.json")


@pytest.mark.parametrize(
    "data", [[[0, 1], [0, 3]], ["a0.h1", "m0"], {"nodes": [], "edges": []}, {"nodes": {}}, 3, None]
)
def test_other_json_is_of_no_format(data):
    with pytest.raises(UserError, match=r"of no known format; convert reads CircuitKit artefact, EAP-IG graph"):
        recognise(data, "x.json")
