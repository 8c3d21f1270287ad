"""Circuits of other tools: what is kept of their files, as those tools write them, and that they are circuits like any other."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.masks import complete_masks
from bigcircuit.cli import answer, run_compare, run_convert, run_evaluate, run_report
from bigcircuit.convert.config import ConversionSettings
from bigcircuit.convert.convert import convert_file
from bigcircuit.convert.formats import eap_ig, edge_pruning
from bigcircuit.planted.induction import induction_pairs
from bigcircuit.results.result_files import read_result
from tests.helpers.foreign_circuits import (
    FFN,
    HEAD_DIM,
    HEADS,
    KEPT,
    KEPT_NODES,
    LAYERS,
    LOOSE,
    SHAPES,
    SIZES,
    TOKENS,
    graph,
    pruned_edges,
)
from tests.helpers.pair_files import write_pairs


def by_hand(kv_heads: int) -> dict[str, torch.Tensor]:
    """Masks of every granularity of KEPT_NODES with all their neurons."""
    heads = torch.tensor([[f"a{i}.h{h}" in KEPT_NODES for h in range(HEADS)] for i in range(LAYERS)])
    mlps = torch.tensor([[f"m{i}" in KEPT_NODES] for i in range(LAYERS)])
    leaves = {"attention_neuron": heads.repeat_interleave(HEAD_DIM, 1), "mlp_neuron": mlps.expand(-1, FFN)}
    return complete_masks(leaves, [replace(shape, kv_heads=kv_heads) for shape in SHAPES])


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
    pairs = write_pairs(tmp_path / "pairs.jsonl", induction_pairs(30))
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
    ({"original": []}, "of no known format; convert reads CircuitKit artefact, EAP-IG graph"),
    (3, "of no known format"),
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
        (b"PK\x03\x04 and the rest", "holds more than tensors, lists and numbers, or is damaged"),
        (b"\x80\x02}q", "such a pickle may run code and is not opened"),
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


def test_pairs_are_named_for_what_they_are(tmp_path, capsys):
    path = write_pairs(tmp_path / "pairs.jsonl", induction_pairs(4))
    assert answer(run_convert, [path]) == 2
    shown = capsys.readouterr().err
    assert (
        "lines of JSON, such as pairs or text, and no circuit; name pairs with --task.path" in shown and path in shown
    )


@pytest.mark.parametrize("ablation", ["interchange", "mean"])
def test_an_ablation_that_the_format_cannot_say_is_told(models, tmp_path, ablation):
    Circuit(by_hand(2), {}, {"ablation": ablation}).save(tmp_path / "ours.safetensors")
    settings = ConversionSettings(
        to="eap-ig", output=str(tmp_path / "graph.json"), model={"path": str(models["llama"])}
    )
    notes = convert_file(tmp_path / "ours.safetensors", settings).notes
    told = "note: the format does not say that the circuit is under mean ablation; read it back with --ablation mean"
    assert (told in notes) == (ablation == "mean")


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
