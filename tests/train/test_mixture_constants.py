"""Runs of a mixture whose closed experts output constants: from training to a circuit on a model object."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.models import build_tiny
from bigcircuit.ablation.ablation import Ablation
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load, members
from bigcircuit.data.collate import collate
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.errors import UserError
from bigcircuit.forward.activation_means import moments
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.population import Population
from bigcircuit.model.granularity import EXPERT_NEURON, VALUE_WIDTH
from bigcircuit.model.sites import find_sites
from tests.helpers.short_runs import run
from tests.helpers.tiny_models import tiny_examples

NEURONS = ["block", "attention", "mlp", "head", "attention_neuron", "mlp_neuron", "expert", "expert_neuron"]


@pytest.fixture(scope="module")
def found(embedded, tmp_path_factory):
    """Folder of a tiny mixture, and of a run on it under optimal ablation."""
    folder, tokenizer = tmp_path_factory.mktemp("mixture"), embedded[1]
    build_tiny("gpt_oss", vocab_size=len(tokenizer)).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    settings = {
        "model__path": str(folder / "model"),
        "ablation__kind": "optimal",
        "gates__granularities": NEURONS,
        "target__total": 0.5,
        "target__expert": 0.5,
        "target__expert_neuron": 0.5,
        "task__size": 40,
        "train__steps": 3,
        "train__validate_every": 3,
        "ablation__finish_steps": 2,
    }
    return folder / "model", run(folder / "run", **settings)


def test_a_run_learns_constants_of_neurons_of_experts(found):
    folder, directory = found
    circuit, model = Circuit.load(directory.circuit("0", 1)), AutoModelForCausalLM.from_pretrained(folder)
    frozen = find_sites(model.eval())
    constants = circuit.ablation.constants[EXPERT_NEURON]
    assert constants.shape == (1, 3, 1, VALUE_WIDTH[EXPERT_NEURON](frozen.shapes[0])) and constants.any()
    ids = torch.tensor([[5, 9, 11, 7]])
    full = model(input_ids=ids).logits
    with circuit.applied(model) as masked:
        assert not torch.allclose(masked(input_ids=ids).logits, full, atol=1e-3)
    assert torch.equal(model(input_ids=ids).logits, full)


def test_constants_of_another_width_are_refused(found):
    folder, directory = found
    circuit, model = Circuit.load(directory.circuit("0", 1)), AutoModelForCausalLM.from_pretrained(folder)
    constants = dict(circuit.ablation.constants)
    constants[EXPERT_NEURON] = constants[EXPERT_NEURON][..., : 8 * find_sites(model).shapes[0].expert_width]
    with (
        pytest.raises(UserError, match="this circuit: the constants of its optimal ablation are .* at expert_neuron"),
        circuit.applied(model, ablation=Ablation("optimal", constants)),
    ):
        pass


@pytest.mark.parametrize("name", ["mamba", "qwen3_moe"])
def test_only_constants_of_nodes_that_a_model_has_are_learned(name):
    """A pass has a gradient for every parameter: a constant of a site without nodes would have none."""
    frozen, examples = find_sites(build_tiny(name)), tiny_examples(2)
    config = load(None, {"ablation.kind": "optimal", "penalty.block": 1.0})
    population = Population.new(members(config), frozen.shapes)
    population.start_constants(moments(frozen, examples, MicroBatches(2), per_position=False, prompts="both"))
    with Streams(frozen, population.learned()) as streams, streams.under(population.learned()):
        logits = streams.masked(collate(examples, full=False), population.draw([0, 1]), 1)
    gradients = torch.autograd.grad(logits.sin().sum(), list(population.parameters()))
    assert len(gradients) > 4 and all(gradient.isfinite().all() for gradient in gradients)
