"""Runs under mean and optimal ablation: members and ranks change nothing, resuming is exact, files hold the constants."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.cli import answer, run_check
from bigcircuit.config.load import load, members
from bigcircuit.data.dataset import load_task
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.forward.activation_means import mean_ablation, moments
from bigcircuit.forward.reference_logits import ReferenceLogits, Targets
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.members import node_counts
from bigcircuit.gates.population import Population
from bigcircuit.memory.estimate import Workload, estimate
from bigcircuit.metrics.score import score
from bigcircuit.model.granularity import SITE_WIDTH
from bigcircuit.model.load import load_config, skeleton
from bigcircuit.train.state import TrainState
from bigcircuit.train.step import update, validate
from tests.helpers.interrupted_runs import Result, once, stop
from tests.helpers.short_runs import QUICK, run
from tests.model.test_architectures import SMALL, build, examples
from tests.model.test_zero3 import CONFIGS, launch

SETTINGS = [
    {"train.seed": 0, "penalty.mlp_neuron": 0.5},
    {"train.seed": 1, "penalty.head": 2.0, "ablation.lr": 0.1},
    {"train.seed": 0, "train.steps": 4},
]


@pytest.fixture(scope="module")
def frozen():
    return build("llama", SMALL)


def new_state(frozen, settings, **values):
    config = load(None, {
        "ablation.kind": "optimal", "train.steps": 8, "train.lr_warmup": 0.0, "population.members": settings, **values,
    })  # fmt: skip
    population = Population.new(members(config), frozen.shapes)
    population.start_constants(moments(frozen, examples(4), MicroBatches(2), per_position=False, prompts="corrupted"))
    return TrainState.new(population, node_counts(frozen.shapes, config.gates.granularities))


def train(frozen, state, steps, checkpointing=False):
    chosen, passes = examples(4), MicroBatches(2)
    start = replace(mean_ablation(frozen, chosen, passes), name="optimal")
    with Streams(frozen, start, checkpointing) as streams:
        references, full = (ReferenceLogits(streams, chosen, passes, full=whole) for whole in (False, True))
        for _ in range(steps):
            update(state, streams, references, chosen, passes)
            validate(state, streams, Targets(chosen, full, full=True), passes)
    return state


def everything(state, member):
    return torch.cat([values.detach().flatten() for values in state.population.members[member].parameters()])


def test_members_together_are_what_they_are_alone(frozen):
    together = train(frozen, new_state(frozen, SETTINGS), 8)
    for index, setting in enumerate(SETTINGS):
        alone = train(frozen, new_state(frozen, [setting]), 8)
        torch.testing.assert_close(everything(together, index), everything(alone, 0), atol=5e-5, rtol=0)
    offsets = [member.offset for member in together.population.members]
    assert 0.02 < offsets[0]["mlp"].abs().max() < 0.17, "at most 8 steps of 0.02 units"
    assert 0.17 < offsets[1]["mlp"].abs().max() < 0.9, "a learning rate of its own"
    again = train(frozen, new_state(frozen, SETTINGS), 8, checkpointing=True)
    torch.testing.assert_close(everything(together, 0), everything(again, 0), atol=5e-5, rtol=0)


def test_constants_take_steps_of_adam_along_the_gradient_of_the_objective(frozen):
    state = new_state(frozen, SETTINGS[:1])
    member = state.population.members[0]
    train(frozen, state, 1)
    first = {site: state.learners[0].optimizer.state[offset]["exp_avg"] for site, offset in member.offset.items()}
    for site, offset in member.offset.items():
        moved = first[site].abs() > 1e-7  # Adam's epsilon is far below
        torch.testing.assert_close(offset[moved], -0.02 * first[site][moved].sign(), atol=2e-4, rtol=0)
    assert state.learners[0].optimizer.param_groups[1]["lr"] == pytest.approx(0.02)


def test_gates_and_constants_are_clipped_apart(frozen):
    state = new_state(frozen, SETTINGS[:1], **{"train.clip": 1e-4})
    train(frozen, state, 1)
    for kind in (state.population.members[0].log_alpha, state.population.members[0].offset):
        moments_ = torch.cat(
            [state.learners[0].optimizer.state[values]["exp_avg"].flatten() for values in kind.values()]
        )
        assert moments_.norm().item() == pytest.approx(0.1 * 1e-4, rel=1e-2)  # 1 - beta_1 of the clipped gradient


def test_a_restored_state_goes_on_bit_for_bit(frozen):
    whole = train(frozen, new_state(frozen, SETTINGS), 8)
    state = train(frozen, new_state(frozen, SETTINGS), 5)
    saved = state.export({})
    saved = saved._replace(tensors={name: tensor.clone() for name, tensor in saved.tensors.items()})
    resumed = new_state(frozen, SETTINGS)
    for unit in resumed.population.spread.values():
        unit.zero_()  # comes from the checkpoint too
    resumed.restore(saved)
    train(frozen, resumed, 3)
    for member in range(3):
        assert torch.equal(everything(whole, member), everything(resumed, member))
        assert whole.learners[member].best.constants.keys() == SITE_WIDTH.keys()
        for site, values in whole.learners[member].best.constants.items():
            assert torch.equal(values, resumed.learners[member].best.constants[site])


def test_best_gates_keep_the_constants_they_were_validated_with(frozen):
    state = train(frozen, new_state(frozen, SETTINGS[:1]), 2)
    best = state.learners[0].best
    with torch.no_grad():
        for offset in state.population.members[0].offset.values():
            offset += 100
    train(frozen, state, 1)
    assert state.learners[0].best is best, "constants that far off do not make a better circuit"
    learned = state.population.learned().constants
    assert all((learned[site][0, :, 0] - best.constants[site]).abs().max() > 1 for site in ("attention", "mlp"))


@pytest.mark.parametrize("settings", [
    {"ablation__kind": "optimal", "population__seeds": 2},
    {"ablation__kind": "optimal", "gates__granularities": ["mlp_neuron", "mlp_output", "attention_neuron"],
     "gates__parametrisation": "hard_concrete", "gates__warm_start": "integrated_gradients"},
    {"ablation__kind": "optimal", "gates__granularities": ["mlp_neuron"], "target__total": None, "target__mlp_neuron": 300},
    {"ablation__kind": "mean", "ablation__prompts": "both", "gates__warm_start": "integrated_gradients"},
    {"ablation__kind": "mean", "ablation__per_position": True, "task__padding": "left"},
])  # fmt: skip
def test_the_file_alone_gives_the_scores_again(tmp_path, embedded, settings):
    folder = run(tmp_path / "run", **settings)
    frozen, tokenizer = embedded
    config = load(None, {**QUICK, **{key.replace("__", "."): value for key, value in settings.items()}})
    data, summary = load_task(config.task, tokenizer, load_config(config.model)), json.loads(folder.summary.read_text())
    assert summary["ablation"] == config.ablation.name
    for row in summary["members"]:
        circuit = Circuit.load(folder.path / row["circuit"])
        assert circuit.metadata["ablation"] == circuit.ablation.name == config.ablation.name
        assert json.loads(circuit.metadata["scores"])[config.ablation.name]["kl"] == row["scores"]["kl"]
        with Streams(frozen, circuit.ablation) as streams:
            found = score(streams, data.splits["test"], [circuit.masks], MicroBatches(8)).kl.mean()
        assert found.item() == pytest.approx(row["scores"]["kl"]["mean"], abs=1e-5)
        ranks = {"mean_per_position": 3}.get(config.ablation.name, 2)
        sites = {"attention", "mlp"} | ({"mlp_output"} if "mlp_output" in config.gates.granularities else set())
        assert {site: values.ndim for site, values in circuit.constants.items()} == dict.fromkeys(sites, ranks)
        with safe_open(folder.path / row["circuit"], framework="pt") as file:
            assert {f"ablation.{site}" for site in sites} < set(json.loads(file.metadata()["sha256"]))


def test_a_changed_constant_is_found_out(tmp_path):
    mask = {name: torch.ones(2, n).bool() for name, n in (("head", 1), ("attention_neuron", 4), ("mlp_neuron", 4))}
    Circuit(mask, {}, {"ablation": "optimal"}, {"mlp": torch.full((2, 4), 1.5)}).save(tmp_path / "c.safetensors")
    assert Circuit.load(tmp_path / "c.safetensors").ablation.constants["mlp"].shape == (1, 2, 1, 4)
    content = (tmp_path / "c.safetensors").read_bytes()
    (tmp_path / "c.safetensors").write_bytes(content.replace(b"\x00\x00\xc0\x3f", b"\x00\x00\xc0\x40", 1))
    with pytest.raises(UserError, match=r"ablation\.mlp is damaged"):
        Circuit.load(tmp_path / "c.safetensors")


def test_a_run_with_learned_constants_resumes_exactly(tmp_path, monkeypatch):
    settings = {"ablation__kind": "optimal", "train__validate_every": 3}
    whole = Result.of(once(tmp_path / "whole", Ranks(), **settings))
    for step in (4, 9):
        stop(tmp_path / "cut", Ranks(), step, **settings)
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr("bigcircuit.train.optimal_ablation.optimal_ablation", crash)
        once(tmp_path / "cut", Ranks(), **settings)
    found = Result.of(once(tmp_path / "cut", Ranks(), **settings))
    assert (found.circuit, found.metrics, found.difference(whole)) == (whole.circuit, whole.metrics, 0)


class Crash(Exception):
    pass


def crash(*_, **__):
    raise Crash


def test_constants_are_fitted_to_the_finished_masks(tmp_path):
    """Nearer to the model than those that were learned with half-open gates; those of open neurons stay what they were."""
    settings = {"ablation__kind": "optimal", "population__seeds": 2, "task__size": 60, "train__steps": 20}
    folders = [run(tmp_path / str(steps), **settings, ablation__finish_steps=steps) for steps in (0, 25)]
    before, after = (json.loads(folder.summary.read_text()) for folder in folders)
    for one, other in zip(before["members"], after["members"], strict=True):
        old, new = (Circuit.load(f.path / row["circuit"]) for f, row in zip(folders, (one, other), strict=True))
        assert other["scores"]["kl"]["mean"] < 0.9 * one["scores"]["kl"]["mean"]
        for site, leaf in (("attention", "attention_neuron"), ("mlp", "mlp_neuron")):
            assert torch.equal(old.masks[leaf], new.masks[leaf])
            moved = old.constants[site] != new.constants[site]
            assert moved[~new.masks[leaf]].any() and not moved[new.masks[leaf]].any()


def test_ranks_and_weights_in_pieces_change_nothing(tmp_path):
    """Means and learned constants on two ranks under ZeRO-3, against one process with the whole model."""
    base = {**QUICK, "ablation.kind": "optimal", "train.micro_batch_size": 4, "train.steps": 4, "train.validate_every": 4,
            "task.size": 40}  # fmt: skip
    zero3 = {"output": str(tmp_path / "ranks"), "deepspeed": str(CONFIGS / "zero3.json")}
    (tmp_path / "runs.json").write_text(json.dumps([{**base, **zero3}]))
    launch(2, 29640, "tests.helpers.run_series", str(tmp_path / "runs.json"))
    alone = run(tmp_path / "alone", **{key.replace(".", "__"): value for key, value in base.items()})
    ours, theirs = (load_file(path / "circuit.safetensors") for path in (alone.path, tmp_path / "ranks"))
    assert ours.keys() == theirs.keys() and "ablation.mlp" in ours
    for key, values in ours.items():
        torch.testing.assert_close(values, theirs[key], atol=1e-6, rtol=1e-6)


def test_data_is_read_before_weights_and_named_in_the_file(tmp_path, capsys):
    settings = {**QUICK, "ablation.kind": "mean", "ablation.data": str(tmp_path / "no.jsonl")}
    words = [f"--{key}={value}" for key, value in settings.items()]
    assert answer(run_check, words) == 2
    assert capsys.readouterr().err.startswith(f"bigcircuit: ablation.data: {tmp_path / 'no.jsonl'}")
    pair = {"clean": "Alice gave", "corrupted": "Alice took it", "answers": [" a"], "wrong_answers": [" b"]}
    (tmp_path / "bad.jsonl").write_text(json.dumps(pair) + "\n")
    assert answer(run_check, [*words, f"--ablation.data={tmp_path / 'bad.jsonl'}"]) == 2
    said = capsys.readouterr().err
    assert "ablation.data: " in said and "bad.jsonl:1" in said and said.count("\n") == 1
    folder = run(tmp_path / "run", ablation__kind="mean", ablation__data="greater_than", task__size=60)
    metadata = Circuit.load(folder.path / "circuit.safetensors").metadata
    assert metadata["ablation_data"] == "greater_than" and len(metadata["ablation_data_sha256"]) == 64
    assert metadata["ablation_data_sha256"] != metadata["task_sha256"]
    checkpoint = next(folder.checkpoints.iterdir())
    assert (
        json.loads((checkpoint / "state.json").read_text())["base"]["ablation data"] == metadata["ablation_data_sha256"]
    )


@pytest.mark.parametrize(("settings", "words"), [
    ({"ablation.kind": "zero", "ablation.per_position": True}, ["ablation.per_position is true", "ablation.kind is zero"]),
    ({"ablation.kind": "optimal", "ablation.per_position": True}, ["per_position is true", "ablation.kind is optimal"]),
    ({"ablation.data": "ioi"}, ["ablation.data is ioi", "ablation.kind is interchange"]),
    ({"ablation.kind": "zero", "ablation.prompts": "both"}, ["ablation.prompts is both", "ablation.kind is zero"]),
])  # fmt: skip
def test_settings_that_contradict_name_both(settings, words):
    with pytest.raises(UserError) as error:
        load(None, settings)
    assert all(word in str(error.value) for word in words)


def test_the_estimate_knows_of_constants_and_of_the_stream_that_is_not_run():
    work = Workload(tokens=32, answer=1, rows=1, trained=50, validated=50)
    parts = {}
    for kind in ("interchange", "zero", "mean", "optimal"):
        config = load(None, {"ablation.kind": kind})
        parts[kind] = estimate(skeleton(config.model), config, None, work)
    layers = skeleton(load(None).model).shapes
    neurons = sum(width(shape) for width in SITE_WIDTH.values() for shape in layers)
    sites = sum(SITE_WIDTH[site](shape) for site in ("attention", "mlp") for shape in layers)
    assert parts["mean"]["ablation constants"] == 4 * neurons
    assert parts["optimal"]["ablation constants"] == 12 * neurons
    assert "ablation constants" not in parts["zero"]
    gates = "gates, Adam moments and sums"
    assert parts["optimal"][gates] - parts["mean"][gates] == 20 * sites
    activations = {kind: part["activations and gradients"] for kind, part in parts.items()}
    assert activations["zero"] < activations["interchange"]
    assert activations["mean"] < activations["interchange"] and activations["optimal"] < 1.02 * activations["mean"]
