"""Means, noise and learned constants of experts and their neurons, against loops over tokens and experts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from benchmarks.models import build_tiny
from bigcircuit.ablation.ablation import Ablation, Tokens
from bigcircuit.ablation.learned import ConstantsStart
from bigcircuit.attribution.baselines import BASELINES
from bigcircuit.data.collate import collate
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.forward.activation_means import mean_ablation, moments
from bigcircuit.forward.expert_constants import ClosedConstants
from bigcircuit.forward.expert_neurons import masked_neurons
from bigcircuit.forward.experts import masked_experts
from bigcircuit.forward.reference_logits import ReferenceLogits, Targets
from bigcircuit.forward.streams import Streams
from bigcircuit.model.granularity import EXPERT, EXPERT_NEURON, SITE_WIDTH, VALUE_WIDTH, fits_values
from bigcircuit.model.sites import FrozenModel, find_sites
from bigcircuit.train.optimal_ablation import optimal_ablation
from tests.helpers.tiny_models import tiny_examples

TYPES = ["qwen3_moe", "gpt_oss", "nemotron_h"]
"""Experts with a gate, with biases and interleaved gates, and without a gate."""
NEURONS = ("expert_neuron",)


def tiny(name: str) -> FrozenModel:
    return find_sites(build_tiny(name))


def of_experts(frozen: FrozenModel) -> int:
    """The last layer with experts."""
    return max(index for index, layer in enumerate(frozen.layers) if EXPERT in layer.sites)


def prompts(examples) -> list[Tensor]:
    """The tokens over which means are taken: corrupted prompts with all but the last token of the answer."""
    return [torch.tensor([[*example.corrupted, *example.answers[0][:-1]]]) for example in examples]


def called_with(frozen: FrozenModel, layer: int, tokens: Tensor) -> tuple[Tensor, ...]:
    """What the experts of a layer are called with for one unpadded prompt, and what they return."""
    found: list = []
    handle = (
        frozen.layers[layer]
        .sites[EXPERT]
        .register_forward_hook(lambda _module, args, output: found.extend([*args, output]))
    )
    frozen.model(input_ids=tokens, use_cache=False)
    handle.remove()
    return tuple(found)


def one_expert(module, expert: int, hidden: Tensor) -> Tensor:
    """Activations [T, F] of one expert, from its matrices."""
    up = (module.gate_up_proj if module.has_gate else module.up_proj)[expert]
    inner = hidden @ up if module.is_transposed else hidden @ up.T
    inner = inner + module.gate_up_proj_bias[expert] if module.has_bias else inner
    return module._apply_gate(inner) if module.has_gate else module.act_fn(inner)


def down(module, expert: int) -> Tensor:
    """Output weights of one expert, [F, D]."""
    weight = module.down_proj[expert]
    return weight if module.is_transposed else weight.T


@pytest.mark.parametrize("name", TYPES)
def test_a_mean_counts_the_tokens_that_the_router_sent_elsewhere(name):
    frozen, examples = tiny(name), tiny_examples(3)
    layer = of_experts(frozen)
    module, shape = frozen.layers[layer].sites[EXPERT], frozen.shapes[layer]
    found = moments(frozen, examples, MicroBatches(2), per_position=False, prompts="corrupted", names=NEURONS)
    values: list[list[list[Tensor]]] = [[] for _ in range(shape.experts)]
    for tokens in prompts(examples):
        hidden, chosen, weights, _ = called_with(frozen, layer, tokens)
        for expert in range(shape.experts):
            weight = (weights * (chosen == expert)).sum(1, keepdim=True)  # 0 where it was not chosen
            inner = weight * one_expert(module, expert, hidden)
            bias = weight * module.down_proj_bias[expert] if module.has_bias else 0
            values[expert].append([inner @ down(module, expert) + bias, inner, weight])
    written, inner, weight = (
        torch.stack([torch.cat([own[part] for own in values[expert]]) for expert in range(shape.experts)])
        for part in range(3)
    )
    neurons = torch.cat([inner, weight], -1) if module.has_bias else inner
    for site, expected in ((EXPERT, written), (EXPERT_NEURON, neurons)):
        mean, deviation = expected.mean(1).flatten(), expected.std(1, correction=0).flatten()
        assert len(mean) == VALUE_WIDTH[site](shape)
        assert torch.allclose(found.mean[site][layer, -1, : len(mean)], mean, atol=1e-5)
        assert torch.allclose(found.deviation[site][layer, : len(mean)], deviation, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "site"), [*((name, site) for name in TYPES for site in (EXPERT, EXPERT_NEURON)), ("llama4_text", EXPERT)]
)
@pytest.mark.parametrize("per_position", [False, True])
def test_closing_all_experts_gives_the_mean_of_their_output(name, site, per_position):
    frozen, examples = tiny(name), tiny_examples(3)
    layer, names = of_experts(frozen), NEURONS if site == EXPERT_NEURON else ()
    settings = {"per_position": per_position, "prompts": "corrupted"}
    found = moments(frozen, examples, MicroBatches(3), names=names, **settings)
    ablation = found.ablation("mean_per_position" if per_position else "mean")

    outputs = [called_with(frozen, layer, tokens)[-1] for tokens in prompts(examples)]
    if name == "llama4_text":  # experts first; each sees every token
        outputs = [output.view(frozen.shapes[layer].experts, -1, output.shape[-1]).sum(0) for output in outputs]
    overall = torch.cat(outputs).mean(0)

    def instead(length: int) -> Tensor:
        if not per_position:
            return overall.expand(length, -1)
        return torch.stack([torch.stack([o[p] for o in outputs if len(o) > p]).mean(0) for p in range(length)])

    def replaced(_module, _args, output: Tensor) -> Tensor:
        if name != "llama4_text":
            return instead(len(output))
        count = frozen.shapes[layer].experts
        return instead(len(output) // count).repeat(count, 1) / count

    batch = collate(examples, full=False)
    width = SITE_WIDTH[site](frozen.shapes[layer])
    with torch.no_grad(), Streams(frozen, ablation) as streams:
        masked = streams.masked(batch, lambda index: {site: torch.zeros(1, 1, width)} if index == layer else {}, 1)[0]
    handle = frozen.layers[layer].sites[EXPERT].register_forward_hook(replaced)
    for row, example in enumerate(examples):
        tokens = torch.tensor([[*example.clean, *example.answers[0][:-1]]])
        expected = frozen.model(input_ids=tokens, use_cache=False).logits[0, len(example.clean) - 1 :]
        assert torch.allclose(masked[batch.score_row == row], expected, atol=1e-4)
    handle.remove()


def drawn(frozen: FrozenModel, site: str, seed: int = 0):
    """A module of experts, its inputs for two rows of three tokens, gates, and an ablation with random constants."""
    numbers = torch.Generator().manual_seed(seed)
    layer = of_experts(frozen)
    shape = frozen.shapes[layer]
    hidden = torch.randn(6, 32, generator=numbers)
    chosen = torch.stack([torch.randperm(shape.experts, generator=numbers)[:2] for _ in range(6)])
    weights = torch.rand(6, 2, generator=numbers)
    gates = torch.rand(2, 2, SITE_WIDTH[site](shape), generator=numbers)
    constants = torch.randn(2, len(frozen.shapes), 1, VALUE_WIDTH[site](shape), generator=numbers)
    tokens = Tokens(torch.arange(3).unsqueeze(0), torch.tensor([4, 9]))
    closed = ClosedConstants(Ablation("optimal", {site: constants}), site, layer, constants.shape[-1], tokens)
    return frozen.layers[layer].sites[EXPERT], (hidden, chosen, weights), gates, closed


def by_hand(module, inputs, gates: Tensor, constants: Tensor, site: str) -> Tensor:
    """Sum over all experts, for each of two members: the open part of a token's own, the constant of the closed part."""
    hidden, chosen, weights = inputs
    count = module.down_proj.shape[0]
    found = []
    for member in range(2):
        for token in range(6):
            total = torch.zeros(32)
            for expert in range(count):
                gate = gates[member, token // 3].view(count, -1)[expert]
                weight = (weights[token] * (chosen[token] == expert)).sum()
                inner = weight * one_expert(module, expert, hidden[token : token + 1])[0]
                own = constants[member].view(count, -1)[expert]
                bias = module.down_proj_bias[expert] if module.has_bias else torch.zeros(32)
                if site == EXPERT:
                    total += gate * (inner @ down(module, expert) + weight * bias) + (1 - gate) * own
                else:
                    mixed = gate * inner + (1 - gate) * own[: len(inner)]
                    total += mixed @ down(module, expert)
                    if module.has_bias:
                        total += (gate.max() * weight + (1 - gate.max()) * own[-1]) * bias
            found.append(total)
    return torch.stack(found)


@pytest.mark.parametrize("site", [EXPERT, EXPERT_NEURON])
@pytest.mark.parametrize("name", TYPES)
def test_half_open_nodes_are_mixed_with_their_constants(name, site):
    module, inputs, gates, closed = drawn(tiny(name), site)
    constants = closed.ablation.constants[site][:, closed.layer, 0]
    twice = [tensor.repeat(2, 1) for tensor in inputs]
    if site == EXPERT:
        found = masked_experts(module, gates, 2, closed, *twice)
    else:
        found = masked_neurons(module, module, gates, 2, closed, *twice)
    assert torch.allclose(found, by_hand(module, inputs, gates, constants, site), atol=1e-4)
    if site == EXPERT:
        assert torch.equal(masked_experts(module, torch.ones(2, 1, 8), 2, closed, *twice)[:6], module(*inputs))


@pytest.mark.parametrize("site", [EXPERT, EXPERT_NEURON])
def test_noise_is_that_of_each_token_and_its_gradient_is_recomputed(site):
    frozen = tiny("qwen3_moe")
    module, inputs, gates, closed = drawn(frozen, site)
    noise = Ablation("noise", {site: torch.zeros_like(closed.ablation.constants[site][:1])},
                     {site: torch.ones_like(closed.ablation.constants[site][:1])}, seed=3)  # fmt: skip
    closed = closed._replace(ablation=noise)
    values = closed.values()  # [1, R, T, w]
    assert values.shape[1:3] == (2, 3) and abs(values.std() - 1) < 0.1
    run = (
        (lambda *a: masked_neurons(module, module, *a))
        if site == EXPERT_NEURON
        else (lambda *a: masked_experts(module, *a))
    )
    gates = gates[:1].requires_grad_()
    found = run(gates, 2, closed, *inputs)
    expected = torch.cat([
        by_hand(module, inputs, gates.repeat(2, 1, 1), values[0, token // 3, token % 3].repeat(2, 1), site)[token : token + 1]
        for token in range(6)
    ])  # fmt: skip
    assert torch.allclose(found, expected, atol=1e-4)
    ours, theirs = (torch.autograd.grad(out.sin().sum(), gates, retain_graph=True)[0] for out in (found, expected))
    assert torch.allclose(ours, theirs, atol=1e-3)


@pytest.mark.parametrize("kind", ["mean", "mean_per_position", "noise"])
@pytest.mark.parametrize("site", [EXPERT, EXPERT_NEURON])
def test_a_circuit_beside_others_is_itself(kind, site):
    frozen, examples = tiny("gpt_oss"), tiny_examples(2)
    names = NEURONS if site == EXPERT_NEURON else ()
    found = moments(frozen, examples, MicroBatches(2), per_position="position" in kind, prompts="both", names=names)
    numbers = torch.Generator().manual_seed(0)
    masks = [{site: torch.rand(3, 2, SITE_WIDTH[site](shape), generator=numbers)} for shape in frozen.shapes]
    batch = collate(examples, full=False)
    with torch.no_grad(), Streams(frozen, found.ablation(kind)) as streams:
        together = streams.masked(batch, lambda index: masks[index], 3)
        for member in range(3):
            alone = streams.masked(batch, lambda index, own=member: {site: masks[index][site][own : own + 1]}, 1)
            assert torch.equal(alone[0], together[member])


@pytest.mark.parametrize("site", [EXPERT, EXPERT_NEURON])
def test_gradients_of_constants_equal_divided_differences(site):
    frozen, examples = tiny("gpt_oss"), tiny_examples(2)
    names = NEURONS if site == EXPERT_NEURON else ()
    found = moments(frozen, examples, MicroBatches(2), per_position=False, prompts="both", names=names)
    constants = found.ablation("mean").constants[site].clone().requires_grad_()
    batch = collate(examples, full=False)
    last, width = of_experts(frozen), SITE_WIDTH[site](frozen.shapes[-1])  # behind it no router chooses others

    def masks(index: int) -> dict[str, Tensor]:
        return {site: torch.full((1, 1, width), 0.3)} if index == last else {}

    def total() -> Tensor:
        ablation = replace(found.ablation("optimal"), constants={site: constants})
        with streams.under(ablation):
            return streams.masked(batch, masks, 1).sin().double().sum()

    with Streams(frozen, found.ablation("optimal")) as streams:
        (gradient,) = torch.autograd.grad(total(), constants)
        place = int(gradient.abs().argmax())
        with torch.no_grad():
            ends = []
            for sign in (1, -1):
                constants.view(-1)[place] += sign * 1e-2
                ends.append(float(total()))
                constants.view(-1)[place] -= sign * 1e-2
    assert (ends[0] - ends[1]) / 2e-2 == pytest.approx(float(gradient.view(-1)[place]), rel=0.02)


@pytest.mark.parametrize("names", [(), NEURONS])
def test_learned_constants_are_nearer_than_means(names):
    frozen, examples, micro_batches = tiny("qwen3_moe"), tiny_examples(4), MicroBatches(4)
    found = moments(frozen, examples, micro_batches, per_position=False, prompts="both", names=names)
    leaf = names[0] if names else "expert"
    width = max(SITE_WIDTH[leaf](shape) for shape in frozen.shapes)
    masks = {leaf: torch.arange(len(frozen.shapes) * width).view(len(frozen.shapes), width) % 2 == 0}
    masks["expert"] = masks[leaf] if not names else torch.ones(len(frozen.shapes), 8, dtype=torch.bool)
    with Streams(frozen, found.ablation("mean")) as streams:
        targets = Targets(examples, ReferenceLogits(streams, examples, micro_batches), full=False)
        start = ConstantsStart.at_means(found, frozen.shapes)
        learned = optimal_ablation(streams, [masks], targets, micro_batches, start, steps=30, lr=0.1)
    # A circuit keeps the constants of the start unless others lower its KL.
    moved = {site for site, own in learned.constants.items() if not torch.equal(own[0, :, 0], found.mean[site][:, 0])}
    assert moved == {leaf}


def test_baselines_that_need_constants_score_experts():
    frozen, examples, micro_batches = tiny("qwen3_moe"), tiny_examples(2), MicroBatches(2)
    with Streams(frozen, mean_ablation(frozen, examples, micro_batches)) as streams:
        for name in ("integrated_gradients", "attribution_patching"):
            (scores,) = BASELINES[name].draw(streams, examples, micro_batches, 1)
            assert scores["expert"].abs().sum() > 0


def test_widths_of_constants_are_known_as_far_as_a_file_tells():
    shapes = tiny("gpt_oss").shapes
    blank = [replace(shape, expert_output=0, expert_bias=False) for shape in shapes]
    experts, neurons = VALUE_WIDTH[EXPERT](shapes[0]), VALUE_WIDTH[EXPERT_NEURON](shapes[0])
    assert neurons == 8 * (shapes[0].expert_width + 1) and experts == 8 * 32
    for known in (shapes, blank):
        assert fits_values(experts, known, EXPERT) and fits_values(neurons, known, EXPERT_NEURON)
        assert not fits_values(experts + 1, known, EXPERT) and not fits_values(neurons + 8, known, EXPERT_NEURON)
    assert not fits_values(experts + 8, shapes, EXPERT)
