"""Gates on experts and their neurons against sums written out expert by expert."""

import pytest
import torch
from torch import Tensor

from benchmarks.models import build_tiny
from bigcircuit.ablation.ablation import INTERCHANGE, ZERO
from bigcircuit.config.load import load, members
from bigcircuit.data.collate import collate
from bigcircuit.errors import UserError
from bigcircuit.forward import expert_neurons, experts
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.population import Population
from bigcircuit.model.granularity import EXPERT, EXPERT_NEURON, SITE_WIDTH
from bigcircuit.model.sites import find_sites
from tests.helpers.tiny_models import constant_masks, random_masks, tiny_examples

ROWS, TOKENS, CHOSEN, COUNT = 2, 3, 2, 8


@pytest.fixture(scope="module", params=["qwen3_moe", "gpt_oss", "nemotron_h"])
def module(request):
    """Experts with a gate, with biases and interleaved gates, and without a gate."""
    frozen = find_sites(build_tiny(request.param))
    return next(layer.sites[EXPERT] for layer in frozen.layers if EXPERT in layer.sites)


def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, experts of each token and their weights."""
    numbers = torch.Generator().manual_seed(seed)
    tokens = ROWS * TOKENS
    chosen = torch.stack([torch.randperm(COUNT, generator=numbers)[:CHOSEN] for _ in range(tokens)])
    hidden = torch.randn(tokens, 32, generator=numbers)
    return hidden, chosen, torch.rand(tokens, CHOSEN, generator=numbers)


def of_one_expert(module, hidden: Tensor, expert: int, gates: Tensor, bias: float) -> Tensor:
    """What an expert writes for one token, from its matrices: gates of its neurons [F], and of its bias."""
    up, down = (module.gate_up_proj if module.has_gate else module.up_proj)[expert], module.down_proj[expert]
    inner = hidden @ up if module.is_transposed else up @ hidden
    if module.has_bias:
        inner = inner + module.gate_up_proj_bias[expert]
    inner = module._apply_gate(inner.unsqueeze(0))[0] if module.has_gate else module.act_fn(inner)
    out = (inner * gates) @ down if module.is_transposed else down @ (inner * gates)
    return out + bias * module.down_proj_bias[expert] if module.has_bias else out


def by_hand(module, masked, corrupted, gates: Tensor) -> Tensor:
    """Open parts of a token's own experts and closed parts of the corrupted token's. gates: [R, E, F]."""
    found = []
    for token in range(ROWS * TOKENS):
        total = torch.zeros(32)
        for (hidden, chosen, weights), opened in ((masked, True), (corrupted, False)):
            for place in range(CHOSEN):
                expert = int(chosen[token, place])
                own = gates[token // TOKENS, expert]
                gate, bias = (own, own.max()) if opened else (1 - own, 1 - own.max())
                total = total + weights[token, place] * of_one_expert(module, hidden[token], expert, gate, bias)
        found.append(total)
    return torch.stack(found)


def test_gates_of_experts(module):
    masked, corrupted = drawn(0), drawn(1)
    gates = torch.rand(1, ROWS, COUNT, generator=torch.Generator().manual_seed(2))
    closed = experts.by_expert(module, *corrupted)
    assert torch.allclose(closed.together(), module(*corrupted), atol=1e-5)
    width = module.down_proj.shape[1 if module.is_transposed else 2]
    expected = by_hand(module, masked, corrupted, gates[0].unsqueeze(-1).expand(-1, -1, width))
    assert torch.allclose(experts.masked_experts(module, gates, ROWS, closed, *masked), expected, atol=1e-5)
    assert torch.equal(experts.masked_experts(module, torch.ones(1, 1, COUNT), ROWS, closed, *masked), module(*masked))
    norms = closed.norms(COUNT)
    assert norms.shape == (ROWS * TOKENS, COUNT) and (norms > 0).sum() == ROWS * TOKENS * CHOSEN
    assert torch.equal(closed.routed(COUNT), (norms > 0).float())


def test_gates_of_neurons(module):
    masked, corrupted = drawn(0), drawn(1)
    width = module.down_proj.shape[1 if module.is_transposed else 2]
    gates = torch.rand(1, ROWS, COUNT * width, generator=torch.Generator().manual_seed(2))
    output, closed = expert_neurons.record(module, module, *corrupted)
    assert torch.equal(output, module(*corrupted))
    expected = by_hand(module, masked, corrupted, gates[0].view(ROWS, COUNT, width))
    found = expert_neurons.masked_neurons(module, module, gates, ROWS, closed, *masked)
    assert torch.allclose(found, expected, atol=1e-5)
    assert "act_fn" not in module.__dict__ and "_apply_gate" not in module.__dict__


def test_gates_of_experts_that_all_see_every_token():
    module = find_sites(build_tiny("llama4_text")).layers[0].sites[EXPERT]
    masked, corrupted = ((hidden, weights * (weights > 0.5)) for hidden, weights in map(llama4_inputs, (0, 1)))
    gates = torch.rand(1, ROWS, COUNT, generator=torch.Generator().manual_seed(2))

    def of_one(hidden: Tensor, weight: Tensor, expert: int) -> Tensor:
        gate, up = ((weight * hidden) @ module.gate_up_proj[expert]).chunk(2)
        return (up * torch.nn.functional.silu(gate)) @ module.down_proj[expert]

    expected = torch.stack([
        sum(
            gates[0, token // TOKENS, expert] * of_one(masked[0][token], masked[1][expert, token], expert)
            + (1 - gates[0, token // TOKENS, expert]) * of_one(corrupted[0][token], corrupted[1][expert, token], expert)
            for expert in range(COUNT)
        )
        for token in range(ROWS * TOKENS)
    ])  # fmt: skip
    scaled, other = ((hidden * weights.unsqueeze(-1)).flatten(0, 1) for hidden, weights in (masked, corrupted))
    closed = module(other).view(1, COUNT, ROWS, TOKENS, -1)
    found = experts.every_expert(module, gates, ROWS, closed, scaled)
    assert torch.allclose(found.view(COUNT, ROWS * TOKENS, -1).sum(0), expected, atol=1e-5)
    assert torch.equal(experts.every_expert(module, torch.ones(1, 1, COUNT), ROWS, closed, scaled), module(scaled))


def llama4_inputs(seed: int) -> tuple[Tensor, Tensor]:
    """Hidden states [N, D], and the weight of every expert for every token, [E, N]."""
    numbers = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS * TOKENS, 32, generator=numbers), torch.rand(COUNT, ROWS * TOKENS, generator=numbers)


@pytest.mark.parametrize("site", [EXPERT, EXPERT_NEURON])
def test_gradients_equal_divided_differences(site):
    frozen = find_sites(build_tiny("qwen3_moe"))
    frozen.model.double()
    frozen.model.config._experts_implementation = "batched_mm"  # the grouped one knows no float64
    batch = collate(tiny_examples(2), full=False)
    masks = [
        {one: torch.rand(1, 2, SITE_WIDTH[one](shape), dtype=torch.float64) for one in ("attention", site)}
        for shape in frozen.shapes
    ]
    masks[1][site].requires_grad_()
    with Streams(frozen, INTERCHANGE) as streams:

        def total() -> Tensor:
            return streams.masked(batch, lambda index: masks[index], 1).sin().sum()

        (gradient,) = torch.autograd.grad(total(), masks[1][site])
        place = gradient.abs().argmax()
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                masks[1][site].view(-1)[place] += sign * 1e-3
                ends.append(total())
                masks[1][site].view(-1)[place] -= sign * 1e-3
    # Norms and the router compute in float32, whatever the model's type is.
    assert (ends[0] - ends[1]).item() / 2e-3 == pytest.approx(gradient.view(-1)[place].item(), rel=1e-2)


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_a_circuit_beside_others_is_itself(name):
    frozen = find_sites(build_tiny(name))
    batch = collate(tiny_examples(2), full=False)
    masks = random_masks(frozen, 3, 2)
    with torch.no_grad(), Streams(frozen, INTERCHANGE) as streams:
        together = streams.masked(batch, lambda index: masks[index], 3)
        for member in range(3):
            own = [{site: values[member : member + 1] for site, values in layer.items()} for layer in masks]
            assert torch.equal(streams.masked(batch, lambda index, own=own: own[index], 1)[0], together[member])


def test_checkpointing_changes_no_gradient():
    frozen, gradients = find_sites(build_tiny("deepseek_v3")), []
    population = Population.new(members(load(None, {"population.seeds": 2})), frozen.shapes)
    assert population.members[0].log_alpha["expert"].shape == (3, 8)
    for checkpointing in (False, True):
        with Streams(frozen, INTERCHANGE, checkpointing) as streams:
            logits = streams.masked(collate(tiny_examples(2), full=False), population.draw([0, 1]), 2)
            gradients.append(torch.autograd.grad(logits.sin().sum(), list(population.parameters())))
    for plain, again in zip(*gradients, strict=True):
        assert torch.allclose(plain, again, atol=1e-7)


def test_experts_do_nothing_under_zero_ablation_if_they_are_closed():
    frozen = find_sites(build_tiny("qwen3_moe"))
    batch, module = collate(tiny_examples(2), full=False), frozen.layers[0].sites[EXPERT]
    outputs = []
    handle = module.register_forward_hook(lambda _module, _args, output: outputs.append(output))
    with torch.no_grad(), Streams(frozen, ZERO) as streams:
        streams.masked(batch, constant_masks(frozen, 0.0), 1)
    handle.remove()
    assert not outputs[0].any()


def test_experts_without_reachable_neurons_are_named():
    llama4 = find_sites(build_tiny("llama4_text")).layers[0].sites[EXPERT]
    assert expert_neurons.refusal(llama4) == "its experts are of a form of their own"
    eager = find_sites(build_tiny("qwen3_moe")).layers[0].sites[EXPERT]
    eager.config._experts_implementation = "eager"
    with pytest.raises(UserError, match="expert_neuron, which eager experts do not show; use expert in its place"):
        expert_neurons.record(eager, eager, *drawn(0))
