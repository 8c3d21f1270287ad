"""Weights that learn along: their gradient, bits on two ranks and after a stop, memory, and the frozen model, which stays."""

import json

import pytest
import torch

import bigcircuit
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.io.run_dir import RunDir
from bigcircuit.memory.estimate import Workload, estimate
from bigcircuit.prune import prune, start_or_resume
from bigcircuit.runtime.progress import ProgressDisplay
from bigcircuit.sweep.config import load_sweep
from bigcircuit.train.resolve import resolve
from bigcircuit.train.setup import set_up
from bigcircuit.train.step import faithfulness_gradient, update
from tests.helpers.exports import saved_tiny
from tests.helpers.interrupted_runs import Result, run_or_resume, stop
from tests.helpers.launch import DEEPSPEED_CONFIGS, launch, option_words
from tests.helpers.quantised_models import needs, save_plain, save_quantised
from tests.helpers.short_runs import run
from tests.helpers.tiny_models import TINY

SETTINGS = {
    "task.name": "text",
    "task.size": 400,
    "task.text.generate": 24,
    "task.text.window": 24,
    "ablation.kind": "mean",
    "train.steps": 6,
    "train.batch_size": 8,
    "train.micro_batch_size": 4,
    "train.log_every": 1,
    "train.validate_every": 3,
    "train.save_every": 2,
    "train.weight_lr": 0.001,
    "target.total": 400,
}
OVERRIDES = {key.replace(".", "__"): value for key, value in SETTINGS.items()}


@pytest.fixture
def training(tmp_path):
    """Context, state and targets of a run at step 0, within its streams."""
    config = load(None, {**SETTINGS, "output": str(tmp_path / "run")})
    context = set_up(resolve(config, Ranks()))
    with context.streams:
        state = start_or_resume(context, RunDir(tmp_path / "run"), ProgressDisplay(enabled=False))
        order = context.training_order()
        yield context, state, order, context.training_targets(order, 6)


def test_the_gradient_is_that_of_central_differences(training):
    context, state, order, targets = training
    count = sum(p.numel() for p in state.population.parameters())

    def sums():
        with state.weights_in_model():
            return faithfulness_gradient(
                state, context.streams, targets.references, order.batch(0), context.micro_batches
            )

    gradient = sums().gradient[count:]
    direction = (gradient / gradient.norm()).float()
    parts = direction.split([value.numel() for value in state.weights.values])
    before = [value.clone() for value in state.weights.values]
    reach = 0.003
    found = []
    for sign in (1, -1):
        for value, old, part in zip(state.weights.values, before, parts, strict=True):
            value.copy_(old + sign * reach * part.view_as(old))
        found.append(sums().kl.item())
    assert (found[0] - found[1]) / (2 * reach) == pytest.approx(gradient.norm().item(), rel=0.02)


def test_the_copy_learns_and_the_frozen_weights_are_back_after_an_error_too(training):
    context, state, order, targets = training
    parameters = [p for layer in context.streams.frozen.layers for p in layer.module.parameters()]
    before = [p.detach().clone() for p in parameters]
    with pytest.raises(KeyError), state.weights_in_model():
        update(state, context.streams, targets.references, order.batch(0), context.micro_batches)
        assert not any(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
        raise KeyError
    assert all(torch.equal(p, old) and not p.requires_grad for p, old in zip(parameters, before, strict=True))
    assert not any(torch.equal(value, old) for value, old in zip(state.weights.values, before, strict=True))


def test_gates_are_others_and_scores_those_of_the_frozen_model(tmp_path):
    along, without = (
        run(tmp_path / name, **{**OVERRIDES, "train__weight_lr": lr}) for name, lr in (("a", 0.001), ("b", 0.0))
    )
    gates = [Circuit.load(folder.path / "circuit.safetensors").log_alpha["mlp_neuron"] for folder in (along, without)]
    assert not torch.equal(*gates)
    found = bigcircuit.evaluate(
        str(along.path), methods=("learned",), draws=2, partial_draws=0, groups=2, levels=("neuron",), quiet=True
    )
    scores = json.loads(along.summary.read_text())["members"][0]["scores"]
    assert found.circuits[0].ablations["mean"].circuit["kl"].mean == pytest.approx(scores["kl"]["mean"], rel=1e-6)


def test_a_stopped_run_goes_on_to_the_bit(tmp_path):
    whole = Result.of(run_or_resume(tmp_path / "whole", Ranks(), **OVERRIDES))
    for step in (1, 4):
        stop(tmp_path / "cut", Ranks(), step, **OVERRIDES)
    assert Result.of(run_or_resume(tmp_path / "cut", Ranks(), **OVERRIDES)).equals(whole)


def test_two_ranks_find_the_bits_of_one(tmp_path):
    settings = {**SETTINGS, "output": str(tmp_path / "two"), "model.path": "embedded"}
    launch(2, "-m", "bigcircuit", "prune", *option_words(settings))
    run_or_resume(tmp_path / "one", Ranks(), **OVERRIDES)
    two, one = (Circuit.load(tmp_path / name / "circuit.safetensors") for name in ("two", "one"))
    for name, values in one.log_alpha.items():
        assert torch.equal(values, two.log_alpha[name]), name


def test_the_copy_is_counted():
    work = Workload(tokens=24, answer=23, rows=1, trained=200, validated=50, windows=True)
    run_along, run_without = (resolve(load(None, {**SETTINGS, "train.weight_lr": lr}), Ranks()) for lr in (0.001, 0.0))
    along, without = (estimate(one, work, is_gpu=False).allocated for one in (run_along, run_without))
    weights = sum(p.numel() for layer in run_along.model.skeleton.layers for p in layer.module.parameters())
    name = "trained values, Adam moments and sums"
    assert along[name] - without[name] == 20 * weights
    # Gradients, float32, and the inputs of projections, which frozen weights do not need.
    assert along["activations and gradients"] - without["activations and gradients"] > 4 * weights


@pytest.mark.parametrize(("settings", "named"), [
    ({"task.name": "ioi", "task.text.generate": 0, "task.text.window": 256, "ablation.kind": "zero"}, "task.name ioi"),
    ({"population.seeds": 2}, "a population"), ({"model.dtype": "bfloat16"}, "model.dtype bfloat16"),
    ({"model.weights": "stream"}, "model.weights stream"), ({"train.saved": "8bit"}, "train.saved 8bit"),
    ({"deepspeed": str(DEEPSPEED_CONFIGS / "zero3.json")}, "deepspeed"),
    ({"model.quantization": "int8"}, "model.quantization int8"),
])  # fmt: skip
def test_what_does_not_go_with_it_is_refused(settings, named):
    with pytest.raises(
        UserError, match=f"train.weight_lr is set and does not go with {named}.*; leave one of them out"
    ):
        load(None, {**SETTINGS, **settings})


def test_quantised_weights_are_refused_before_they_are_loaded(tmp_path):
    needs("torchao")
    folder, _ = save_quantised("torchao Int8WeightOnlyConfig", save_plain(tmp_path / "plain"), tmp_path / "quantised")
    config = load(None, {**SETTINGS, "model.path": str(folder), "output": str(tmp_path / "run")})
    with pytest.raises(UserError, match="has quantised weights, and train.weight_lr trains a copy.*dequantise"):
        prune(config, Ranks())


def test_a_mixture_is_refused(tmp_path):
    saved_tiny("mixtral", {**TINY, "num_local_experts": 2, "num_experts_per_tok": 1}, tmp_path / "mixture")
    config = load(None, {**SETTINGS, "model.path": str(tmp_path / "mixture")})
    with pytest.raises(UserError, match="is a mixture.*, whose weights neither train.weight_lr nor recover trains"):
        resolve(config, Ranks())


@pytest.mark.parametrize("space", [{"train.seed": [0, 1]}, {"train.weight_lr": [0.0, 0.001]}])
def test_a_sweep_is_refused(tmp_path, space):
    lr = 0.0 if "train.weight_lr" in space else 0.001
    overrides = {**SETTINGS, "train.weight_lr": lr, "sweep": {"space": space}, "output": str(tmp_path / "s")}
    with pytest.raises(UserError, match="train.weight_lr is set, and trials share frozen weights; leave it out"):
        load_sweep(None, overrides)
