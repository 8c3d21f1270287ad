"""Circuit files: what is written is what is read, and a change is found."""

import json
import shutil
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import torch

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.masks import complete_masks
from bigcircuit.errors import UserError
from bigcircuit.model.granularity import GRANULARITIES, LayerShape


def test_a_changed_constant_is_found_out(tmp_path):
    mask = {name: torch.ones(2, n).bool() for name, n in (("head", 1), ("attention_neuron", 4), ("mlp_neuron", 4))}
    constants = {"attention": torch.zeros(2, 4), "mlp": torch.full((2, 4), 1.5)}
    Circuit(mask, {}, {"ablation": "optimal"}, constants).save(tmp_path / "c.safetensors")
    assert Circuit.load(tmp_path / "c.safetensors").ablation.constants["mlp"].shape == (1, 2, 1, 4)
    content = (tmp_path / "c.safetensors").read_bytes()
    (tmp_path / "c.safetensors").write_bytes(content.replace(b"\x00\x00\xc0\x3f", b"\x00\x00\xc0\x40", 1))
    with pytest.raises(UserError, match=r"ablation\.mlp is damaged"):
        Circuit.load(tmp_path / "c.safetensors")


def test_damaged_circuit_file_is_refused(finished_run, tmp_path):
    path = tmp_path / "c.safetensors"
    shutil.copy(finished_run.path / "circuit.safetensors", path)
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"c\.safetensors: tensor .* is damaged"):
        Circuit.load(path)


SHAPES = [LayerShape(heads=4, kv_heads=2, head_dim=3, intermediate=5, hidden=12)] * 2
KNOWN = {"model": "m", "model_weights_sha256": "a" * 64, "task": "t", "ablation": "zero"}


def circuit_of(attention, mlp, constants=None, **known):
    """A circuit that keeps these attention and MLP neurons, as (layer, number)."""
    leaves = {"attention_neuron": torch.zeros(2, 12).bool(), "mlp_neuron": torch.zeros(2, 5).bool()}
    for name, kept in (("attention_neuron", attention), ("mlp_neuron", mlp)):
        for place in kept:
            leaves[name][place] = True
    widths = {name: [one.width(shape) for shape in SHAPES] for name, one in GRANULARITIES.items()}
    return Circuit(
        complete_masks(leaves, SHAPES), {}, {**KNOWN, "widths": json.dumps(widths), **known}, constants or {}
    )


@pytest.fixture
def two():
    return circuit_of([(0, 3), (0, 5)], [(1, 4)], seed="0"), circuit_of([(0, 5), (1, 0)], [(1, 4)], seed="1")


def test_set_operations_and_their_metadata(two):
    first, second = two
    assert (first | second) == circuit_of([(0, 3), (0, 5), (1, 0)], [(1, 4)])
    assert (first & second) == circuit_of([(0, 5)], [(1, 4)])
    assert (first - second) == circuit_of([(0, 3)], [])
    assert first.jaccard(second) == 2 / 4 and first.jaccard(second, "head") == 1 / 2
    known = (first | second).metadata
    assert known["task"] == "t" and known["operation"] == "union" and not {"seed", "scores", "step"} & known.keys()
    assert [parent["name"] for parent in json.loads(known["parents"])] == ["t seed 0", "t seed 1"]


def test_a_combination_is_saved_and_loaded(two, tmp_path):
    union = two[0] | two[1]
    assert Circuit.load(union.save(tmp_path / "u.safetensors")) == union


def test_equality_is_that_of_nodes_model_and_ablation(two):
    first, same = two[0], circuit_of([(0, 3), (0, 5)], [(1, 4)], scores="{}", seed="9")
    assert first == same and hash(first) == hash(same) and len({first, same}) == 1
    assert first != two[1] and first != first.under("interchange") and first != "something else"
    assert first != circuit_of([(0, 3), (0, 5)], [(1, 4)], model_weights_sha256="b" * 64)
    with_constants = {value: {"mlp": torch.full((2, 5), value)} for value in (0.0, 1.0)}
    made = [circuit_of([], [(0, 0)], constants, ablation="mean") for constants in with_constants.values()]
    assert made[0] != made[1]


def test_constants_of_parts_are_kept_where_they_are_the_same():
    constants = {site: torch.ones(2, n) for site, n in (("attention", 12), ("mlp", 5))}
    other = {site: values + 1 for site, values in constants.items()}
    first, same, changed = (
        circuit_of([(0, 0)], [(0, number)], given, ablation="mean")
        for number, given in enumerate([constants, constants, other])
    )
    assert torch.equal((first | same).constants["mlp"], constants["mlp"])
    assert (first | changed).constants == {} and (first | changed).ablation is None


def test_circuits_that_do_not_belong_together_are_refused(two):
    first = two[0]
    with pytest.raises(UserError, match="models with other weights"):
        first | circuit_of([], [(0, 0)], model_weights_sha256="b" * 64)
    with pytest.raises(UserError, match=r'under zero .* the other under interchange .*circuit.under\("zero"\)'):
        first & two[1].under("interchange")
    narrow = complete_masks(
        {"attention_neuron": torch.ones(2, 6).bool(), "mlp_neuron": torch.ones(2, 5).bool()},
        narrow_shapes := [replace(shape, heads=2, kv_heads=1) for shape in SHAPES],
    )
    widths = {name: [one.width(shape) for shape in narrow_shapes] for name, one in GRANULARITIES.items()}
    with pytest.raises(UserError, match="models of other widths"):
        first - Circuit(narrow, {}, {**KNOWN, "widths": json.dumps(widths)})
    with pytest.raises(TypeError):
        first | 3


def test_what_people_read(finished_run):
    circuit = Circuit.load(finished_run.path)
    assert repr(circuit).count("\n") == 0 and len(repr(circuit)) < 200
    assert f"{circuit.sizes()['head']}/32 heads" in repr(circuit) and "KL " in repr(circuit)
    assert circuit.heads == [tuple(place) for place in circuit.masks["head"].nonzero().tolist()]
    assert [row.name for row in circuit.nodes()] == [f"L{layer}H{head}" for layer, head in circuit.heads]
    assert list(circuit.to_pandas("mlp")["layer"]) == circuit.masks["mlp"].flatten().nonzero().flatten().tolist()
    with pytest.raises(UserError, match="heads is no granularity"):
        circuit.nodes("heads")
    written = json.loads((finished_run.path / "summary.json").read_text())["members"][0]["scores"]
    assert circuit.scores["kl"].mean == written["kl"]["mean"] and circuit.scores.keys() == written.keys()
    assert circuit_of([], [(0, 0)]).scores == {}


def test_the_drawing_has_a_cell_a_head_and_is_xml(two):
    picture = ElementTree.fromstring(two[0].picture)
    titles = [one.text for one in picture.iter("{http://www.w3.org/2000/svg}title")]
    assert titles[1:] == ["L0H1: 2 of 3 neurons", "L1MLP: 1 of 5 neurons"]
    empty_cells = [one for one in picture.iter("{http://www.w3.org/2000/svg}rect") if one.get("fill") == "#808894"]
    assert len(empty_cells) == 2 * (4 + 1)
    assert two[0]._repr_html_().startswith("<figure><svg")


def test_paths_are_text_too_and_a_folder_is_no_file(two, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert two[0].save("~/c.safetensors") == tmp_path / "c.safetensors"
    assert Circuit.load("~/c.safetensors") == two[0]
    with pytest.raises(UserError, match="is a folder; name a file"):
        two[0].save(tmp_path)


def test_the_overlap_of_all_neurons_counts_those_of_mixers_too(two):
    """As `compare` and reports count it."""
    mixer = {"mixer_neuron": torch.tensor([[True, True, False], [False, False, False]])}
    first, second = (replace(one, masks={**one.masks, **mixer}) for one in two)
    assert two[0].jaccard(two[1]) == pytest.approx(2 / 4) and first.jaccard(second) == pytest.approx(4 / 6)
    with pytest.raises(UserError, match="expert is no granularity of both circuits; use total or any of block"):
        two[0].jaccard(two[1], "expert")


@pytest.mark.parametrize(
    ("constants", "problem"),
    [
        ({"attention": torch.ones(1, 2, 1, 12)}, r"are missing at mlp; give float32 \[1, 2, 1, 5\]"),
        ({"attention": torch.ones(1, 2, 1, 12), "mlp": torch.ones(1, 2, 1, 1)}, r"are \[1, 2, 1, 1\] at mlp"),
        ({"attention": torch.ones(2, 12), "mlp": torch.ones(2, 5)}, r"are \[2, 12\] at attention"),
        ({"attention": torch.ones(1, 3, 1, 12), "mlp": torch.ones(1, 3, 1, 5)}, r"are \[1, 3, 1, 12\] at attention"),
    ],
)
def test_constants_that_would_be_spread_over_neurons_or_are_missing_are_refused(two, constants, problem):
    with pytest.raises(UserError, match=problem):
        two[0].under(Ablation("mean", constants))
