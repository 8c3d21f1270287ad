"""Circuits of other tools: what is kept of their files, as those tools write them, and that they are circuits like any other."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.controls import consistent
from bigcircuit.cli import answer, run_compare, run_convert, run_evaluate, run_report
from bigcircuit.convert import eap_ig, edge_pruning
from bigcircuit.convert.nodes import END, START, on_paths
from bigcircuit.model.granularity import LayerShape
from bigcircuit.results.evaluation import read_result
from tests.prune.test_real_models import induction_pairs, write

LAYERS, HEADS, WIDTH, HEAD_DIM, FFN = 3, 4, 16, 4, 24
SHAPES = [LayerShape(HEADS, 2, HEAD_DIM, FFN, WIDTH)] * LAYERS
SIZES = {
    "gpt2": {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "n_inner": FFN, "n_positions": 16},
    "llama": {
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "hidden_size": WIDTH,
        "intermediate_size": FFN,
    },
}
TOKENS = {"vocab_size": 32, "bos_token_id": None, "eos_token_id": None}
NAMES = ["input", *(name for i in range(LAYERS) for name in [*(f"a{i}.h{h}" for h in range(HEADS)), f"m{i}"])]

KEPT = {
    "input->a0.h1<v>",
    "input->m0",
    "a0.h1->m0",
    "m0->a1.h2<q>",
    "m0->a2.h3<k>",
    "a1.h2->m2",
    "m2->logits",
    "a2.h3->logits",
}
LOOSE = {"input->a0.h0<q>", "a1.h0->logits", "m0->m1"}
"""Edges to nowhere, or from nowhere."""
NODES = {"a0.h1", "m0", "a1.h2", "a2.h3", "m2"}


def place(name: str) -> tuple[int, bool]:
    return (-1, True) if name == "input" else (int(name[1:].split(".")[0]), name[0] == "m")


def graph(edges=KEPT | LOOSE, marked=NODES, **cfg) -> dict:
    """Every node and edge there is, in the shape and order of EAP-IG's to_json."""
    readers = [f"a{i}.h{h}<{letter}>" for i in range(LAYERS) for letter in "qkv" for h in range(HEADS)] + [
        f"m{i}" for i in range(LAYERS)
    ]
    every = [f"{w}->{r}" for r in readers for w in NAMES if place(w) < place(r.split("<")[0])] + [
        f"{w}->logits" for w in NAMES
    ]
    assert edges <= set(every)
    return {
        "cfg": {"n_layers": LAYERS, "n_heads": HEADS, "parallel_attn_mlp": False, "d_model": WIDTH} | cfg,
        "nodes": {name: {"in_graph": name in {"input", *marked}} for name in NAMES} | {"logits": {"in_graph": True}},
        "edges": {name: {"score": 0.5, "in_graph": name in edges} for name in every},
    }


def pruned_edges(edges, group: int, embeds: str) -> list[list[str]]:
    """The same edges as Edge-Pruning lists them; keys and values by key/value head."""
    made = []
    for edge in sorted(edges):
        writer, reader = edge.replace("logits", "resid_post").split("->")
        if reader.endswith(">"):
            head, letter = reader[:-3], reader[-2]
            layer, number = head.split(".h")
            reader = f"{head}.q" if letter == "q" else f"{layer}.h{int(number) // group}.{letter}"
        made.append([embeds if writer == "input" else writer, reader])
    return made


def by_hand(kv_heads: int) -> dict[str, torch.Tensor]:
    """Masks of every granularity of NODES with all their neurons."""
    heads = torch.tensor([[f"a{i}.h{h}" in NODES for h in range(HEADS)] for i in range(LAYERS)])
    mlps = torch.tensor([[f"m{i}" in NODES] for i in range(LAYERS)])
    leaves = {"attention_neuron": heads.repeat_interleave(HEAD_DIM, 1), "mlp_neuron": mlps.expand(-1, FFN)}
    return consistent(leaves, [shape._replace(kv_heads=kv_heads) for shape in SHAPES])


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Path]:
    """Tiny models on disk, without a tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    for name, sizes in SIZES.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **TOKENS, **sizes))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
        model.save_pretrained(folder / name)
    return {name: folder / name for name in SIZES}


def converted(path: Path, content, model: Path, *more: str) -> Circuit:
    """The circuit that the command writes for a file of this content."""
    path.write_text(json.dumps(content))
    assert answer(run_convert, [str(path), "--model.path", str(model), *more]) == 0
    return Circuit.load(path.with_suffix(".safetensors"))


def same(masks, expected) -> None:
    assert masks.keys() == expected.keys()
    for name, mask in expected.items():
        assert torch.equal(masks[name], mask), name


@pytest.mark.parametrize(("name", "kv_heads", "embeds"), [("gpt2", 4, "tok_embeds"), ("llama", 2, "embeds")])
def test_both_formats_of_a_circuit_give_the_masks_made_by_hand(models, tmp_path, capsys, name, kv_heads, embeds):
    first = converted(tmp_path / "graph.json", graph(), models[name])
    same(first.masks, by_hand(kv_heads))
    shown = capsys.readouterr().out
    assert "EAP-IG graph: 3 of 12 heads and 2 of 3 MLPs are kept, with all their neurons 60 of 120" in shown
    assert "note" not in shown, "what it marks in_graph is what is kept"
    listed = pruned_edges(KEPT | LOOSE, HEADS // kv_heads, embeds)
    second = converted(tmp_path / "edges.json", listed, models[name])
    same(second.masks, first.masks)
    assert first.metadata["widths"] == second.metadata["widths"] and not first.log_alpha


def test_a_converted_circuit_is_evaluated_as_one_of_ours(models, tmp_path):
    model = models["llama"]
    made = converted(tmp_path / "graph.json", graph(), model)
    Circuit(by_hand(2), {}, {"ablation": "interchange"}).save(tmp_path / "ours.safetensors")
    config = tmp_path / "config.yaml"
    pairs = write(tmp_path / "pairs.jsonl", induction_pairs(30))
    config.write_text(json.dumps({"model": {"path": str(model)}, "task": {"name": "pairs", "path": pairs}}))
    files = [str(tmp_path / "graph.safetensors"), str(tmp_path / "ours.safetensors")]
    options = "--draws 2 --partial_draws 1 --groups 4 --methods none".split()
    assert (
        answer(run_evaluate, [*files, "--config", str(config), *options, "--output", str(tmp_path / "evaluated")]) == 0
    )
    theirs, ours = read_result(tmp_path / "evaluated/evaluation.json")["circuits"]
    assert theirs["kept"] == ours["kept"] and theirs["parameters"] == ours["parameters"]
    assert theirs["ablations"] == ours["ablations"] and theirs["found_under"] == "interchange"
    assert theirs["ablations"]["interchange"]["circuit"]["kl"]["mean"] > 0
    assert answer(run_compare, [*files, "--save", "intersection", "--output", str(tmp_path / "compared")]) == 0
    same(Circuit.load(tmp_path / "compared/intersection.safetensors").masks, made.masks)
    assert answer(run_report, [files[0]]) == 0
    assert "lies on a path of kept edges" in (tmp_path / "graph.html").read_text()


def test_the_file_says_what_it_was_made_from_and_how(models, tmp_path):
    found = converted(
        tmp_path / "edges.json", pruned_edges(KEPT, 1, "embeds"), models["gpt2"], "--ablation", "zero"
    ).metadata
    assert found["model"] == "gpt2" and len(found["model_weights_sha256"]) == 64
    assert (
        edge_pruning.RULE in found["operation"] and "all neurons of a kept head or MLP are kept" in found["operation"]
    )
    assert (found["converted_file"], found["ablation"]) == ("edges.json", "zero")
    assert "task" not in found and json.loads(found["granularities"]) == list(by_hand(4))


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


def test_paths_by_hand():
    assert on_paths([(START, END)]) == set()
    assert on_paths([]) == set()


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
    assert eap_ig.read(old, SHAPES, "x") == eap_ig.read(graph(), SHAPES, "x")
    alone = graph(edges=set(), marked={"a0.h2", "m1"})
    alone["nodes"]["m1"] |= {"score": float("nan"), "neurons": [True] * 3 + [False] * (WIDTH - 3)}
    kept = eap_ig.read(alone, SHAPES, "x")
    assert kept.nodes == {(0, 2), (1, None)}
    assert [note.split(",")[0] for note in kept.notes] == ["it keeps no edge", "its neurons"]


MISTAKES = [
    ({"cfg": {}, "nodes": {}}, "edges is not there or is no mapping"),
    ({**graph(), "nodes": []}, "nodes is not there or is no mapping"),
    (graph(n_layers=12), "cfg.n_layers is 12, of the model 3; name the model"),
    (graph(n_heads=8), "cfg.n_heads is 8"),
    (graph(d_model=None), "cfg.d_model is None"),
    (graph() | {"nodes": {"a9.h0": {"in_graph": True}}}, "nodes: 'a9.h0' is no node; the model has heads a0.h0 to a2.h3"),
    (graph() | {"nodes": {"a0.h0": {"score": 1.0}}}, "nodes.a0.h0.in_graph is None, not true or false"),
    (graph() | {"edges": {"input->a0.h1": {"in_graph": True}}}, "'input->a0.h1' is no edge"),
    (graph() | {"edges": {"m1->a1.h1<q>": {"in_graph": True}}}, "'m1->a1.h1<q>' is no edge"),
    (graph() | {"edges": {"input->m0<q>": {"in_graph": True}}}, "'input->m0<q>' is no edge"),
    (graph() | {"edges": {"input->m0": {"in_graph": "yes"}}}, "edges.input->m0.in_graph is 'yes'"),
    (graph(edges=set(), marked=set()), "keeps no head and no MLP, so there is no circuit; where it holds scores alone"),
    ([["embeds", "m0"], ["m0"]], "edge 2: ['m0'] is no pair of names"),
    ([["embeds", 3]], "edge 1: ['embeds', 3] is no pair of names"),
    ([["embeds", "a0.h2.k"]], "edge 1: embeds -> a0.h2.k is no edge"),
    ([["embeds", "a0.h1"]], "edge 1: embeds -> a0.h1 is no edge"),
    ([["embeds", "m0.q"]], "edge 1: embeds -> m0.q is no edge"),
    ([["m1", "m0"]], "edge 1: m1 -> m0 is no edge"),
    ([["head.0.1", "m2"]], "edge 1: head.0.1 -> m2 is no edge"),
    ([], "keeps no head and no MLP"),
    ({"original": []}, "JSON of no known format; convert reads EAP-IG graph and Edge-Pruning edges"),
    (3, "JSON of no known format"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "message"), MISTAKES)
def test_mistakes_are_one_line(models, tmp_path, capsys, content, message):
    path = tmp_path / "circuit.json"
    path.write_text(json.dumps(content))
    assert answer(run_convert, [str(path), "--model.path", str(models["llama"])]) == 2
    shown = capsys.readouterr().err
    assert message in shown and str(path) in shown and len(shown.splitlines()) == 1
    assert not path.with_suffix(".safetensors").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"cfg": {', "not readable as JSON (Expecting property name"),
        (b"\xff\xfe\x00", "not readable as JSON"),
        (b"PK\x03\x04 and the rest", "a pickle of PyTorch, which may run code"),
        (b"\x80\x02}q", "a pickle of PyTorch"),
        (None, "cannot be read (No such file"),
    ],
)
def test_files_that_are_no_json_are_named_for_what_they_are(tmp_path, capsys, content, message):
    path = tmp_path / "graph.pt"
    if content is not None:
        path.write_bytes(content)
    assert answer(run_convert, [str(path)]) == 2
    shown = capsys.readouterr().err
    assert message in shown and str(path) in shown and len(shown.splitlines()) == 1


def test_a_circuit_file_is_one_already_and_nothing_is_overwritten(models, tmp_path, capsys):
    words = [str(tmp_path / "graph.json"), "--model.path", str(models["gpt2"])]
    converted(tmp_path / "graph.json", graph(), models["gpt2"])
    written = (tmp_path / "graph.safetensors").read_bytes()
    assert answer(run_convert, words) == 2
    assert "graph.safetensors: exists already" in capsys.readouterr().err
    assert answer(run_convert, [*words, "--output", str(tmp_path / "again.safetensors")]) == 0
    assert (tmp_path / "again.safetensors").read_bytes() == written, "the same file gives the same bytes"
    assert answer(run_convert, [str(tmp_path / "again.safetensors")]) == 2
    assert "a circuit file of the format bigcircuit/1 already; evaluate" in capsys.readouterr().err
    assert answer(run_convert, [str(models["gpt2"] / "model.safetensors")]) == 2
    assert "a safetensors file that holds no circuit" in capsys.readouterr().err


def test_a_config_without_weights_suffices(models, tmp_path, capsys):
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/config.json").write_bytes((models["gpt2"] / "config.json").read_bytes())
    same(converted(tmp_path / "graph.json", graph(), tmp_path / "bare").masks, by_hand(4))
    assert "note: the model's weights are not here" in capsys.readouterr().out


def test_the_words_of_the_command(models, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({"model": {"path": str(models["gpt2"])}, "task": {"name": "ioi"}}))
    (tmp_path / "graph.json").write_text(json.dumps(graph()))
    assert answer(run_convert, [str(tmp_path / "graph.json"), "--config", str(config)]) == 0
    for words, message in (
        ([], "convert needs one file at a time"),
        (["a.json", "b.json"], "convert needs one file at a time"),
        (["a.json", "--ablation", "none"], "ablation: input should be 'interchange', 'zero'"),
        (["a.json", "--model.pth", "x"], "--model.pth is not a setting; did you mean model.path?"),
    ):
        assert answer(run_convert, words) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_convert(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert all(rule in shown for rule in (eap_ig.RULE, edge_pruning.RULE)) and "--model.path" in shown
