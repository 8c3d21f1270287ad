"""Which constants `bigcircuit evaluate` puts in the place of closed nodes: those in a circuit's file, or of its own config."""

import json
from pathlib import Path

import pytest
import torch

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load
from bigcircuit.data.dataset import AblationData, load_ablation_data, load_task
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.evaluation import scorer
from bigcircuit.evaluation.ablation_constants import MeanData, MeanDataReader, resolve_constants
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.evaluate import evaluate_circuits
from bigcircuit.evaluation.open_circuits import LoadedCircuit
from bigcircuit.forward.activation_means import mean_ablation
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.score import score
from bigcircuit.results.evaluation import Means
from bigcircuit.train.optimal_ablation import optimal_ablation
from tests.helpers.short_runs import QUICK, run

FAST = {"draws": 2, "partial_draws": 0, "groups": 0, "methods": "none"}
SMALL = {"task__size": 60, "train__steps": 8}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One under each ablation that has constants, and one under interchange; the second has a data set of its own."""
    folder = tmp_path_factory.mktemp("runs")
    kinds = {
        "interchange": {},
        "mean": {"ablation__kind": "mean", "ablation__data": "induction", "ablation__prompts": "clean"},
        "optimal": {"ablation__kind": "optimal", "ablation__prompts": "both"},
    }
    for name, settings in kinds.items():
        run(folder / name, **SMALL, **settings)
    return folder


def kl_of(evaluation, name, ablation):
    circuit = next(one for one in evaluation.circuits if one.name == name)
    return circuit.ablations[ablation].circuit["kl"].mean


def test_learned_constants_are_those_of_the_file(runs, tmp_path, monkeypatch):
    """Those of everything else are learned: complement, nothing, random circuits, and a circuit found under another one."""
    learned = []

    def spy(streams, circuits, *rest, **settings):
        learned.append([one["mlp_neuron"].sum().item() for one in circuits])
        return optimal_ablation(streams, circuits, *rest, **settings, steps=3)

    monkeypatch.setattr(scorer, "optimal_ablation", spy)
    other = tmp_path / "induction.yaml"
    other.write_text("task: {name: induction, size: 40}\n")
    options = EvaluationSettings(
        **{**FAST, "groups": 2}, ablations="optimal,zero", tasks=str(other), output=str(tmp_path)
    )
    found = evaluate_circuits([str(runs / "optimal"), str(runs / "interchange")], options, Ranks())
    summary = json.loads((runs / "optimal/summary.json").read_text())
    kl = summary["members"][0]["scores"]["kl"]["mean"]
    assert kl_of(found, "optimal", "optimal") == pytest.approx(kl, rel=1e-4)
    sizes = {
        n: Circuit.load(runs / n / "circuit.safetensors").sizes()["mlp_neuron"] for n in ("optimal", "interchange")
    }
    total = found.nodes["mlp_neuron"]
    first = [total - sizes["optimal"], 0, sizes["optimal"], sizes["optimal"]]  # complement, nothing, two random ones
    second = [sizes["interchange"], total - sizes["interchange"], 0, sizes["interchange"], sizes["interchange"]]
    cell = [sizes["interchange"], 0]
    assert learned == [first, second, *[[0], cell] * 2], "the cells of two tasks, with nothing beside, for either start"
    minimal = {one.name: [name for name, u in one.ablations.items() if u.minimality] for one in found.circuits}
    assert minimal == {"optimal": ["optimal"], "interchange": ["zero"]}, (
        "with the constants of the file, or without any"
    )
    dropped = found.circuits[0].ablations["optimal"].minimality["head"]
    assert dropped.kept == found.circuits[0].kept["head"] and dropped.dropped[0].kl_change.mean > 0
    cells = {(cell.circuit, cell.task): cell.scores["kl"].mean for cell in found.cross["optimal"]}
    assert cells["optimal", "ioi"] == pytest.approx(kl, rel=1e-4) and len(cells) == 4


def by_hand(embedded, folder, per_position, averaged, prompts):
    """KL of a run's circuit under means over the prompts of some pairs; `averaged` makes them of the config."""
    frozen, tokenizer = embedded
    config = load(None, {**QUICK, "task.size": SMALL["task__size"]})
    data = load_task(config.task, tokenizer, frozen.model.config)
    means = mean_ablation(frozen, averaged(config, data), MicroBatches(8), per_position, prompts)
    with Streams(frozen, means) as streams:
        masks = Circuit.load(folder / "circuit.safetensors").masks
        return score(streams, data.splits["test"], [masks], MicroBatches(8))["kl"].mean().item()


def induction(embedded):
    """All pairs of the induction task, for `by_hand`."""
    frozen, tokenizer = embedded

    def averaged(config, _):
        named = config.model_copy(update={"ablation": config.ablation.model_copy(update={"data": "induction"})})
        return load_ablation_data(named, tokenizer, frozen.model.config).examples

    return averaged


def test_means_are_over_what_the_config_of_each_circuit_names(runs, tmp_path, embedded):
    def trained(_, data):
        return data.splits["train"]

    wanted = {
        "interchange": (trained, "corrupted"),
        "mean": (induction(embedded), "clean"),
        "optimal": (trained, "both"),
    }
    names = [str(runs / name) for name in wanted]
    options = EvaluationSettings(**FAST, ablations="mean,mean_per_position", output=str(tmp_path))
    found = evaluate_circuits(names, options, Ranks())
    for name, averaged in wanted.items():
        for ablation in ("mean", "mean_per_position"):
            kl = by_hand(embedded, runs / name, ablation != "mean", *averaged)
            assert kl_of(found, name, ablation) == pytest.approx(kl, rel=1e-4, abs=1e-6), (name, ablation)
    assert len({kl_of(found, name, "mean") for name in wanted}) == 3
    means = {one.name: one.ablations["mean"].means for one in found.circuits}
    assert [(m.data, m.prompts, m.in_file) for m in means.values()] == [
        ("training pairs", "corrupted", False), ("induction", "clean", True), ("training pairs", "both", False),
    ]  # fmt: skip
    assert means["interchange"].sha256 == found.tasks["ioi"].sha256 != means["mean"].sha256
    assert not found.circuits[1].ablations["mean_per_position"].means.in_file


def test_means_over_a_named_data_set_also_for_a_circuit_found_without_any(runs, tmp_path, embedded):
    options = EvaluationSettings(**FAST, ablations="mean", output=str(tmp_path))
    now = {"ablation.data": "induction", "ablation.prompts": "clean"}
    found = evaluate_circuits([str(runs / "interchange")], options, Ranks(), overrides=now)
    under = found.circuits[0].ablations["mean"]
    assert under.circuit["kl"].mean == pytest.approx(
        by_hand(embedded, runs / "interchange", False, induction(embedded), "clean")
    )
    assert (under.means.data, under.means.prompts, under.means.in_file) == ("induction", "clean", False)
    assert found.circuits[0].found_under == "interchange"


def test_a_data_set_that_is_named_now_is_taken_instead_of_the_means_in_the_file(runs, tmp_path, embedded):
    options = EvaluationSettings(**{**FAST, "methods": "random", "levels": "head"}, output=str(tmp_path))
    now = {"ablation.data": None, "ablation.prompts": "corrupted"}
    found = evaluate_circuits([str(runs / "mean")], options, Ranks(), overrides=now)
    kl = by_hand(embedded, runs / "mean", False, lambda _, data: data.splits["train"], "corrupted")
    assert kl_of(found, "mean", "mean") == pytest.approx(kl, rel=1e-4)
    assert [one.method for one in found.curves["mean"]] == ["random"]


TENSORS = {"attention": torch.ones(1, 4), "mlp": torch.ones(1, 4)}


def loaded(found_under, metadata, tensors=TENSORS, **ablation):
    """A circuit of this name, whose config has these settings of `ablation`."""
    config = load(None, {f"ablation.{key}": value for key, value in ablation.items()})
    circuit = Circuit({}, {}, {"ablation": found_under, **metadata}, tensors)
    return LoadedCircuit(name="c", path=Path("c"), circuit=circuit, config=config, control=False)


NAMED = {"ablation_data": "ioi", "ablation_data_sha256": "a", "ablation_prompts": "clean", "task_sha256": "t"}
TRAINED = {"ablation_data": "", "ablation_prompts": "clean", "task_sha256": "t"}


@pytest.mark.parametrize(
    ("found_under", "metadata", "config", "ablation", "is_saved", "reads", "source"),
    [
        ("zero", {}, {"kind": "zero"}, "interchange", False, False, None),
        ("zero", {}, {"kind": "mean"}, "mean", False, True, ("training pairs", "now", "corrupted", False)),
        ("mean", NAMED, {"kind": "mean", "data": "ioi", "prompts": "clean"}, "mean", True, False, ("ioi", "a", "clean", True)),
        ("mean", TRAINED, {"kind": "mean", "prompts": "clean"}, "mean", True, False, ("training pairs", "t", "clean", True)),
        ("mean", NAMED, {"kind": "mean", "prompts": "clean"}, "mean", False, True, ("training pairs", "now", "clean", False)),
        ("mean", NAMED, {"kind": "mean", "data": "ioi"}, "mean", False, True, ("ioi", "b", "corrupted", False)),
        ("mean", NAMED, {"kind": "mean", "data": "ioi"}, "mean_per_position", False, True, ("ioi", "b", "corrupted", False)),
        ("optimal", NAMED, {"kind": "optimal", "data": "x"}, "optimal", True, True, ("ioi", "a", "clean", True)),
        ("optimal", NAMED, {"kind": "optimal"}, "mean", False, True, ("training pairs", "now", "corrupted", False)),
    ],
)  # fmt: skip
def test_where_constants_come_from_by_hand(found_under, metadata, config, ablation, is_saved, reads, source):
    calls = []

    def read(circuit):
        calls.append(circuit)
        settings = circuit.config.ablation
        return MeanData(AblationData([], "b", "") if settings.data else None, settings.prompts)

    found = resolve_constants(loaded(found_under, metadata, **config), ablation, read, "now")
    assert (found.saved is not None, found.data is not None, len(calls)) == (is_saved, reads, reads)
    assert found.source == (source and Means(*source))
    if is_saved:
        bare = loaded(found_under, metadata, {}, **config)
        assert resolve_constants(bare, ablation, read, "now").saved is None, "a file without constants"


def test_a_data_set_is_read_once_for_all_circuits_that_name_it(monkeypatch):
    calls = []
    monkeypatch.setattr(
        "bigcircuit.evaluation.ablation_constants.load_ablation_data",
        lambda config, *_: calls.append(config.ablation.data),
    )
    read = MeanDataReader(None, None)
    first, same, other, none = (
        loaded("mean", {}, kind="mean", data=data) for data in ("ioi", "ioi", "induction", None)
    )
    assert read(first) is read(same) is read(first)
    assert read(other) is not read(first) and read(none) is not read(first)
    assert calls == ["ioi", "induction", None]
