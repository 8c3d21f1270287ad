"""Circuits in the formats of other tools: what is written is read back, and what has no place there is told."""

import csv
import json
from dataclasses import replace

import pytest
import torch

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.masks import complete_masks
from bigcircuit.cli import answer, run_convert
from bigcircuit.convert.formats import CONVERT_FORMATS
from bigcircuit.model.granularity import GRANULARITIES
from tests.helpers.foreign_circuits import (
    FFN,
    HEADS,
    KEPT,
    KEPT_NODES,
    LAYERS,
    SHAPES,
    SIZES,
    TOKENS,
    graph,
    pruned_edges,
)

BOTH_WAYS = [known.to for known in CONVERT_FORMATS.values() if known.read and known.write]
SUFFIXES = {known.to: known.suffix for known in CONVERT_FORMATS.values()}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Config of a tiny Llama, without weights."""
    from transformers import AutoConfig

    folder = tmp_path_factory.mktemp("model")
    AutoConfig.for_model("llama", **TOKENS, **SIZES["llama"]).save_pretrained(folder)
    return folder


def convert(*words) -> None:
    assert answer(run_convert, [str(word) for word in words]) == 0


def refused(capsys, *words) -> str:
    assert answer(run_convert, [str(word) for word in words]) == 2
    shown = capsys.readouterr().err
    assert len(shown.splitlines()) == 1
    return shown


@pytest.fixture
def scored(model, tmp_path):
    """A circuit that was converted from a graph with scores of nodes and edges."""
    content = graph()
    for place, (name, node) in enumerate(content["nodes"].items()):
        if name not in ("input", "logits"):
            node["score"] = place / 7 - 1
    for place, edge in enumerate(content["edges"].values()):
        edge["score"] = place / 64 - 1
    (tmp_path / "graph.json").write_text(json.dumps(content))
    convert(tmp_path / "graph.json", "--model.path", model, "--output", tmp_path / "ours.safetensors")
    return tmp_path / "ours.safetensors"


@pytest.mark.parametrize("to", BOTH_WAYS)
def test_what_is_written_is_read_back(model, scored, tmp_path, to):
    other, again = tmp_path / f"other{SUFFIXES[to]}", tmp_path / "again.safetensors"
    convert(scored, "--to", to, "--model.path", model, "--output", other)
    convert(other, "--model.path", model, "--output", again)
    first, second = Circuit.load(scored), Circuit.load(again)
    for name, mask in first.masks.items():
        assert torch.equal(second.masks[name], mask), name
    held = {"eap-ig": 4, "eap-ig-pt": 4, "circuitkit": 2, "csv": 2}.get(to, 0)
    assert len(second.extra) == held
    for name, values in second.extra.items():
        assert torch.equal(values, first.extra[name]), name


def test_the_graph_of_another_tool_comes_back_as_it_was(model, scored, tmp_path):
    convert(scored, "--to", "eap-ig", "--model.path", model, "--output", tmp_path / "back.json")
    before, after = (json.loads((tmp_path / name).read_text()) for name in ("graph.json", "back.json"))
    assert after["cfg"] == before["cfg"] and after["edges"] == {
        name: edge | {"score": torch.tensor(edge["score"]).item()} for name, edge in before["edges"].items()
    }
    kept = {name for name, node in after["nodes"].items() if node["in_graph"]}
    assert kept == KEPT_NODES | {"input", "logits"}
    assert all("score" in node for name, node in after["nodes"].items() if name not in ("input", "logits"))


def test_edges_of_edge_pruning_are_the_same_list(model, tmp_path):
    listed = pruned_edges(KEPT, 2, "embeds")
    (tmp_path / "edges.json").write_text(json.dumps(listed))
    content = graph(edges=KEPT)
    (tmp_path / "graph.json").write_text(json.dumps(content))
    convert(tmp_path / "graph.json", "--model.path", model)
    convert(
        tmp_path / "graph.safetensors",
        "--to",
        "edge-pruning",
        "--model.path",
        model,
        "--output",
        tmp_path / "again.json",
    )
    assert sorted(json.loads((tmp_path / "again.json").read_text())) == sorted(listed)


def partly(tmp_path) -> Circuit:
    """A circuit of single neurons, with trained gates."""
    masks = {
        "attention_neuron": torch.rand(LAYERS, HEADS * 4, generator=torch.Generator().manual_seed(0)) < 0.4,
        "mlp_neuron": torch.rand(LAYERS, FFN, generator=torch.Generator().manual_seed(1)) < 0.4,
    }
    log_alpha = {
        name: torch.randn(mask.shape, generator=torch.Generator().manual_seed(2)) for name, mask in masks.items()
    }
    made = complete_masks(masks, SHAPES)
    widths = {name: [mask.shape[1]] * LAYERS for name, mask in made.items()}
    metadata = {"ablation": "interchange", "widths": json.dumps(widths), "task": "ioi", "model": "tiny"}
    Circuit(made, log_alpha, metadata).save(tmp_path / "partly.safetensors")
    return Circuit.load(tmp_path / "partly.safetensors")


def test_masks_of_single_neurons_come_back_from_transformer_lens(model, tmp_path, capsys):
    first = partly(tmp_path)
    convert(tmp_path / "partly.safetensors", "--to", "transformer-lens")
    assert "what closed nodes output under interchange ablation is not in it" in capsys.readouterr().out
    convert(tmp_path / "partly.json", "--model.path", model, "--output", tmp_path / "again.safetensors")
    second = Circuit.load(tmp_path / "again.safetensors")
    assert all(torch.equal(second.masks[name], mask) for name, mask in first.masks.items())
    assert "All edges among kept" not in second.metadata["operation"]


@pytest.mark.parametrize("to", ["eap-ig", "edge-pruning", "circuitkit", "circuit-tracer"])
def test_what_a_graph_of_nodes_cannot_say_is_told(model, tmp_path, capsys, to):
    made = partly(tmp_path)
    convert(
        tmp_path / "partly.safetensors", "--to", to, "--model.path", model, "--output", tmp_path / f"x{SUFFIXES[to]}"
    )
    heads = made.masks["attention_neuron"].view(LAYERS, HEADS, 4)
    part = int((heads.any(2) & ~heads.all(2)).sum()) + int(
        (made.masks["mlp_neuron"].any(1) & ~made.masks["mlp_neuron"].all(1)).sum()
    )
    assert (
        f"note: {part} heads and MLPs are kept in part; in this format a node is kept whole" in capsys.readouterr().out
    )


def test_circuitkit_lists_what_is_removed(scored, tmp_path):
    convert(scored, "--to", "circuitkit", "--output", tmp_path / "x.pt")
    removed = torch.load(tmp_path / "x.pt", weights_only=True)
    names = {f"A{n[1:].replace('.h', '.')}" if n[0] == "a" else f"MLP {n[1:]}" for n in KEPT_NODES}
    scores = json.loads((tmp_path / "x_scores.json").read_text())["node_scores"]
    assert set(scores) - set(removed) == names and set(removed) < set(scores)


def test_a_file_of_scores_beside_is_not_replaced(scored, tmp_path, capsys):
    (tmp_path / "x_scores.json").write_text("mine")
    assert "x_scores.json: exists already" in refused(
        capsys, scored, "--to", "circuitkit", "--output", tmp_path / "x.pt"
    )
    assert (tmp_path / "x_scores.json").read_text() == "mine" and not (tmp_path / "x.pt").exists()


def test_a_graph_that_names_a_node_twice_is_refused(model, tmp_path, capsys):
    text = json.dumps(graph()).replace('"a0.h1": {', '"a0.h0": {', 1)
    (tmp_path / "twice.json").write_text(text)
    assert "'a0.h0' more than once" in refused(capsys, tmp_path / "twice.json", "--model.path", model)


def test_a_submission_has_the_folders_and_says_what_is_evaluated(model, tmp_path, capsys):
    made = partly(tmp_path)
    convert(tmp_path / "partly.safetensors", "--to", "mib", "--model.path", model, "--output", tmp_path / "submission")
    found = torch.load(tmp_path / "submission/bigcircuit_patching_node/ioi_tiny/importances.pt", weights_only=True)
    assert found["nodes_scores"].shape == (1 + LAYERS * (HEADS + 1),) and found["nodes_scores"][1:].isfinite().all()
    shown = capsys.readouterr().out
    assert "0.5: " in shown and "the smallest sizes are empty: the model has 15 scored nodes" in shown
    assert "the leaderboard skips ioi_tiny" in shown
    assert "two tasks and two models; here no task and no model" in shown and "evaluated at 0.001" in shown
    assert made.masks["head"].any()
    message = refused(
        capsys,
        tmp_path / "partly.safetensors",
        "--to",
        "mib",
        "--model.path",
        model,
        "--output",
        tmp_path / "submission",
    )
    assert "ioi_tiny: exists already" in message


def test_scores_with_signs_are_evaluated_by_value_and_by_size(model, scored, tmp_path, capsys):
    convert(scored, "--to", "mib", "--model.path", model, "--output", tmp_path / "submission")
    lines = capsys.readouterr().out.splitlines()
    by_value, by_size = (
        next(line for line in lines if name in line) for name in ("by score at", "by absolute score at")
    )
    assert by_value.split(" at ")[1] != by_size.split(" at ")[1]


def test_a_graph_for_the_viewer_links_what_it_has(scored, tmp_path):
    convert(scored, "--to", "circuit-tracer", "--output", tmp_path / "mine.json")
    content = json.loads((tmp_path / "mine.json").read_text())
    ids = {node["node_id"] for node in content["nodes"]}
    assert len(ids) == len(content["nodes"]) == len(KEPT_NODES) + 2
    assert all(link["source"] in ids and link["target"] in ids for link in content["links"]) and content["links"]
    [listed] = json.loads((tmp_path / "graph-metadata.json").read_text())["graphs"]
    assert listed == content["metadata"] and listed["slug"] == "mine"
    # Read from the scripts of the viewer, version 0.5.0, which shows no graph otherwise.
    assert len(listed["prompt_tokens"]) * 2 / 3 >= 1, "a node on more of the tokens is dropped"
    [logits] = [node for node in content["nodes"] if node["feature_type"] == "logit"]
    assert float(logits["clerp"].split("(p=")[1].split(")")[0]) == 1
    nodes = [node for node in content["nodes"] if node["feature_type"] == "cross layer transcoder"]
    for node in nodes:
        layer, number, _ = map(int, node["node_id"].split("_"))
        assert node["feature"] == sum(range(layer + number + 1)) + number
    ranked = sorted(nodes, key=lambda node: -abs(node["activation"]))
    shares = [node["influence"] for node in ranked]
    assert shares == sorted(shares) and 0 < shares[0] <= shares[-1] == pytest.approx(1)


def test_a_table_counts_neurons(tmp_path):
    made = partly(tmp_path)
    convert(tmp_path / "partly.safetensors", "--to", "csv")
    rows = list(csv.DictReader((tmp_path / "partly.csv").open()))
    assert len(rows) == LAYERS * (HEADS + 1)
    assert sum(int(row["neurons_kept"]) for row in rows) == made.sizes()["total"]


def test_mistakes_are_one_line(model, scored, tmp_path, capsys):
    assert "--to onnx: not a format; known: circuit-tracer, circuitkit" in refused(capsys, scored, "--to", "onnx")
    assert "exists already" in refused(capsys, scored, "--to", "eap-ig", "--output", tmp_path / "graph.json")
    torch.save(["A0.1"], tmp_path / "g.pt")
    for words, kind in (((scored, "--to", "csv"), ".csv"), ((tmp_path / "g.pt",), ".safetensors")):
        said = refused(capsys, *words, "--model.path", model, "--output", tmp_path / "x.json")
        assert f"--output {tmp_path / 'x.json'}: the file is of the kind {kind}; name it {tmp_path / 'x'}{kind}" in said
    assert "a circuit file of the format bigcircuit/1 already; evaluate" in refused(capsys, scored)
    (tmp_path / "bad.csv").write_text("layer,kind,head,kept\n0,head,9,1\n")
    assert "bad.csv: line 2 names no node of the model" in refused(capsys, tmp_path / "bad.csv", "--model.path", model)
    torch.save(["A0.1", "A9.9"], tmp_path / "bad.pt")
    assert "'A9.9' is no node; the model has A0.0 to A2.3 and MLP 0" in refused(
        capsys, tmp_path / "bad.pt", "--model.path", model
    )
    convert(scored, "--to", "eap-ig-pt", "--model.path", model, "--output", tmp_path / "good.pt")
    good = torch.load(tmp_path / "good.pt", weights_only=True)
    for change, message in (
        ({"edges_scores": torch.zeros(2, 2)}, "edges_scores is no tensor of 16 x 40"),
        ({"src_nodes": ["input"]}, "src_nodes or dst_nodes are not in EAP-IG's order"),
        ({"cfg": good["cfg"] | {"n_heads": 8}}, "cfg.n_heads is 8, of the model 4"),
    ):
        torch.save(good | change, tmp_path / "bad.pt")
        assert message in refused(capsys, tmp_path / "bad.pt", "--model.path", model)
    (tmp_path / "bad.csv").write_text("layer,kind,head,kept\n0,head,1,1\n1,mlp,,1\n0,head,1,0\n")
    assert "bad.csv: line 4 is of a node that line 2 is of" in refused(
        capsys, tmp_path / "bad.csv", "--model.path", model
    )
    for change, message in (
        (
            {"edges_in_graph": torch.ones_like(good["edges_in_graph"])},
            "edges_in_graph keeps a0.h0->a0.h0<q>, which is no edge",
        ),
        ({"src_nodes": 3}, "src_nodes or dst_nodes are not in EAP-IG's order"),
        ({"edges_scores": good["edges_scores"].to_sparse()}, "edges_scores is no tensor of 16 x 40"),
    ):
        torch.save(good | change, tmp_path / "bad.pt")
        assert message in refused(capsys, tmp_path / "bad.pt", "--model.path", model)
    torch.save(["A0.1"], tmp_path / "scored.pt")
    for scores, message in (({"A0.1": "x"}, "node_scores: A0.1: "), ([1], "node_scores: it: ")):
        (tmp_path / "scored_scores.json").write_text(json.dumps({"node_scores": scores}))
        assert f"scored_scores.json: {message}" in refused(capsys, tmp_path / "scored.pt", "--model.path", model)
    (tmp_path / "graph-metadata.json").write_text('{"graphs": [3]}')
    assert "graph-metadata.json: graphs: 0: " in refused(
        capsys, scored, "--to", "circuit-tracer", "--output", tmp_path / "g.json"
    )
    (tmp_path / "masks.json").write_text(json.dumps({"masks": {"blocks.0.attn.hook_z": [1, 0]}}))
    assert "masks.blocks.0.attn.hook_z is not 0 or 1 for 4 x 4 neurons" in refused(
        capsys, tmp_path / "masks.json", "--model.path", model
    )


def test_a_pickle_that_runs_code_is_not_opened(model, tmp_path, capsys):
    class Code:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"cfg": Code()}, tmp_path / "evil.pt")
    message = refused(capsys, tmp_path / "evil.pt", "--model.path", model)
    assert "such a pickle may run code and is not opened" in message and "run\n" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda masks: masks.pop("blocks.1.mlp.hook_post"),
            "there is none for blocks.1.mlp.hook_post, and whether its neurons",
        ),
        (
            lambda masks: masks.update({"blocks.0.attn.o.hook_in": masks["blocks.0.attn.hook_z"]}),
            "blocks.0.attn.o.hook_in names a place that another mask is of",
        ),
    ],
)
def test_masks_that_do_not_say_what_is_kept_are_refused(model, tmp_path, capsys, change, problem):
    """A hook that is not there leaves neurons open in TransformerLens, and would have closed them here."""
    partly(tmp_path)
    convert(tmp_path / "partly.safetensors", "--to", "transformer-lens")
    content = json.loads((tmp_path / "partly.json").read_text())
    change(content["masks"])
    (tmp_path / "partly.json").write_text(json.dumps(content))
    assert problem in refused(
        capsys, tmp_path / "partly.json", "--model.path", model, "--output", tmp_path / "again.safetensors"
    )


def other_circuit(tmp_path, shapes, made, extra=None, **metadata):
    widths = {name: [g.width(shape) for shape in shapes] for name, g in GRANULARITIES.items()}
    known = {"ablation": "zero", "widths": json.dumps(widths), "task": "ioi", "model": "tiny", **metadata}
    return Circuit(made, {}, known, extra=extra or {}).save(tmp_path / "other.safetensors")


def test_what_other_tools_have_no_place_for_is_refused_or_told(tmp_path, capsys):
    mixed = [SHAPES[0], replace(SHAPES[0], mixer_heads=2, mixer_dim=3)]
    path = other_circuit(tmp_path, mixed, complete_masks({"head": torch.ones(2, HEADS).bool()}, mixed))
    assert "has mixers that are no attention" in refused(capsys, path, "--to", "csv")
    experts = [replace(SHAPES[0], intermediate=0, experts=4, expert_width=2, hidden=0)] * 2
    chosen = {"head": torch.ones(2, HEADS).bool(), "expert": torch.tensor([[True] * 4, [True, False, True, True]])}
    path = other_circuit(tmp_path, experts, complete_masks(chosen, experts))
    assert "masks of experts, for which there is no hook" in refused(capsys, path, "--to", "transformer-lens")
    convert(path, "--to", "csv")
    assert "note: 1 heads and MLPs are kept in part" in capsys.readouterr().out


def test_scores_of_another_size_and_a_model_that_is_a_path_elsewhere(model, tmp_path, capsys):
    made = complete_masks({"head": torch.ones(LAYERS, HEADS).bool()}, SHAPES)
    path = other_circuit(tmp_path, SHAPES, made, {"edge_kept": torch.ones(2, 2).bool()})
    assert "tensor extra.edge_kept is no bool of 16 x 40" in refused(capsys, path, "--to", "edge-pruning")
    path = other_circuit(tmp_path, SHAPES, made, model="../../../tiny")
    convert(path, "--to", "mib", "--model.path", model, "--output", tmp_path / "sub")
    assert [one.name for one in (tmp_path / "sub/bigcircuit_zero_node").iterdir()] == ["ioi_tiny"]
    assert "evaluates by patching, and this circuit was found under zero ablation" in capsys.readouterr().out


def test_without_the_model_what_is_guessed_is_told(scored, tmp_path, capsys):
    convert(scored, "--to", "edge-pruning", "--output", tmp_path / "edges.json")
    shown = capsys.readouterr().out
    assert "note: its embeddings are called embeds, as Llama's are; for GPT-2 name the model" in shown
    assert "note: MLPs are taken to read the heads of their layer" in shown


def test_rows_that_a_table_of_nodes_lacks_are_told(model, tmp_path, capsys):
    rows = [f"{layer},head,{head},1" for layer in range(LAYERS) for head in range(HEADS)]
    rows += [f"{layer},mlp,,1" for layer in range(LAYERS)]
    for name, kept, told in (("whole", rows, False), ("cut", rows[:-2], True)):
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(["layer,kind,head,kept", *kept]) + "\n")
        assert answer(run_convert, [str(path), "--model.path", str(model)]) == 0
        assert ("2 heads and MLPs have no row and are taken as closed" in capsys.readouterr().out) is told
