"""Baselines against captum, finite differences, an exactly linear model and formulas by hand."""

from types import SimpleNamespace

import captum.attr
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from bigcircuit.ablation.ablation import INTERCHANGE, ZERO, Ablation
from bigcircuit.ablation.kinds import KINDS
from bigcircuit.attribution.baselines import BASELINES, LEARNED_GATES, METHOD_LABELS, by_chance, by_integrated_gradients
from bigcircuit.attribution.node_scores import flat, level_size
from bigcircuit.data.collate import collate
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.evaluation.ranking import circuits_of
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.logit_metrics import contrast, kl_divergence
from bigcircuit.metrics.score import score
from bigcircuit.model.granularity import (
    ATTENTION,
    EVERYWHERE,
    GRANULARITIES,
    LEAVES,
    MLP,
    MLP_OUTPUT,
    SITE_WIDTH,
    expand,
)
from bigcircuit.model.sites import find_sites
from tests.helpers.launch import DEEPSPEED_CONFIGS, launch
from tests.helpers.text_windows import random_windows
from tests.helpers.tiny_models import TINY, TOKEN_IDS, tiny_examples, tiny_model

DENSE = [*EVERYWHERE, "mlp_output"]
"""Granularities of a dense model."""
NAMES = [name for name, baseline in BASELINES.items() if not baseline.is_random and not baseline.only]


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama", TINY)


def site_rows(frozen, vector, sites=(ATTENTION, MLP)):
    """[P, all neurons] -> what Streams asks for, by layer."""
    widths = [SITE_WIDTH[site](shape) for site in sites for shape in frozen.shapes]
    parts = iter(vector.split(widths, dim=-1))
    rows = {site: [next(parts).unsqueeze(1) for _ in frozen.shapes] for site in sites}
    return lambda index: {site: rows[site][index] for site in sites}


@pytest.mark.parametrize("ablation", [INTERCHANGE, ZERO], ids=lambda a: a.name)
def test_integrated_gradients_are_those_of_captum(llama, ablation):
    chosen = tiny_examples(3)
    batch = collate(chosen, full=False)
    count = level_size("neuron", llama.shapes)
    with Streams(llama, ablation) as streams:
        reference = streams.reference(batch)

        def lowered(masks):
            logits = streams.masked(batch, site_rows(llama, masks), len(masks))
            return -kl_divergence(reference, logits, batch).mean(1)

        wanted = captum.attr.IntegratedGradients(lowered).attribute(
            torch.ones(1, count), n_steps=10, method="riemann_middle"
        )
        found = by_integrated_gradients(streams, chosen, MicroBatches(2))
    torch.testing.assert_close(flat(found, "neuron", llama.shapes), wanted[0].float(), atol=1e-6, rtol=1e-4)


def test_integrated_gradients_sum_to_the_change_of_kl_at_every_granularity(llama):
    chosen, micro_batches = tiny_examples(3), MicroBatches(2)
    with Streams(llama, INTERCHANGE) as streams:
        found = by_integrated_gradients(streams, chosen, micro_batches, points=60)
        ends = circuits_of(found, "neuron", [0, level_size("neuron", llama.shapes)], llama.shapes)
        empty, full = score(streams, chosen, ends, micro_batches)["kl"].mean(1).tolist()
    for name in ("block", "head", "attention_neuron"):
        other = 0 if name == "block" else found["mlp"].sum().item()
        assert found[name].sum().item() + other == pytest.approx(empty - full, rel=0.02)


def at_full(frozen, chosen, streams, direction, step=5e-3):
    """Contrast of the full model with all masks moved along `direction`, divided difference, [1, B] each."""
    batch = collate(chosen, full=False)
    sites = (ATTENTION, MLP, MLP_OUTPUT)
    moved = torch.stack([1 + step * direction, 1 - step * direction])
    with torch.no_grad():
        found = contrast(streams.masked(batch, site_rows(frozen, moved, sites), 2), batch)
    return [(values[0] - values[1]) / (2 * step) for values in found]


def direction_of(frozen, name, layer, node):
    """One node's neurons, over all neurons of all sites."""
    parts = []
    for site in (ATTENTION, MLP, MLP_OUTPUT):
        for index, shape in enumerate(frozen.shapes):
            own = torch.zeros(GRANULARITIES[name].width(shape), dtype=torch.float64)
            if index == layer and site in GRANULARITIES[name].sites and (site != MLP_OUTPUT or name == "mlp_output"):
                own[node] = 1
                parts.append(expand(own, site, shape))
            else:
                parts.append(torch.zeros(SITE_WIDTH[site](shape), dtype=torch.float64))
    return torch.cat(parts)


@pytest.mark.parametrize("name", DENSE)
def test_gradients_at_the_full_model_equal_divided_differences(llama, name):
    """Attribution patching: mean of the logit difference's; head importance: mean of the cross-entropy's absolute ones."""
    chosen, micro_batches = tiny_examples(3), MicroBatches(2)
    model = llama.model.double()
    try:
        with Streams(llama, INTERCHANGE) as streams:
            patching = BASELINES["attribution_patching"].score(streams, chosen, micro_batches)[name]
            importance = BASELINES["head_importance"].score(streams, chosen, micro_batches)[name]
            for layer in range(3):
                node = GRANULARITIES[name].width(llama.shapes[layer]) - 1
                direction = direction_of(llama, name, layer, node)
                difference, _, entropy = at_full(llama, chosen, streams, direction)
                # Scores are computed from float32 logits, which bounds what a divided difference can show.
                assert patching[layer, node].item() == pytest.approx(difference.mean().item(), rel=0.01, abs=1e-4)
                assert importance[layer, node].item() == pytest.approx(entropy.abs().mean().item(), rel=0.01, abs=1e-4)
    finally:
        model.float()


def linear_model():
    """OPT of one layer without final norm and with a constant MLP: logits are linear in the attention, and in the MLP, masks."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "opt", vocab_size=96, hidden_size=32, ffn_dim=48, num_hidden_layers=1, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=32, do_layer_norm_before=True, _remove_final_layer_norm=True,
        **TOKEN_IDS,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.2 * torch.randn_like(parameter))
    model.model.decoder.layers[0].fc1.weight.zero_()
    return find_sites(model)


def one_token_answers(count):
    return [e._replace(answers=(e.answers[0][:1],)) for e in tiny_examples(count)]


@pytest.mark.parametrize("ablation", [INTERCHANGE, ZERO], ids=lambda a: a.name)
@pytest.mark.parametrize("name", ["attention_neuron", "head", "attention", "mlp_neuron"])
def test_attribution_patching_is_exact_where_the_model_is_linear(name, ablation):
    frozen = linear_model()
    chosen, micro_batches = one_token_answers(3), MicroBatches(2)
    with Streams(frozen, ablation) as streams:
        found = BASELINES["attribution_patching"].score(streams, chosen, micro_batches)[name][0]
        full = score(streams, chosen, None, micro_batches)["logit_difference"].mean()
        (everything,) = circuits_of({name: torch.ones(1, len(found))}, name, [len(found)], frozen.shapes)
        for node in range(len(found)):
            without = {key: mask.clone() for key, mask in everything.items()}
            leaf = "mlp_neuron" if name.startswith("mlp") else "attention_neuron"
            width = without[leaf].shape[1] // len(found)
            without[leaf][0, node * width : (node + 1) * width] = False
            effect = full - score(streams, chosen, [without], micro_batches)["logit_difference"].mean()
            assert found[node].item() == pytest.approx(effect.item(), abs=2e-5)
    assert (found.abs().max() > 0.01) == (ablation is ZERO or name != "mlp_neuron")


def by_hand(frozen, chosen, weight_of):
    """Wanda scores of both projections, weight by weight [L][D, n], from the plain model's own activations."""
    inputs = {}
    hooks = []
    for index, layer in enumerate(frozen.layers):
        for site, projection in ((ATTENTION, layer.attention), (MLP, layer.mlp)):
            rows = inputs.setdefault((site, index), [])
            hooks.append(projection.register_forward_pre_hook(lambda _, args, rows=rows: rows.append(args[0][0])))
    for example in chosen:
        frozen.model(input_ids=torch.tensor([example.clean + example.answers[0][:-1]]), use_cache=False)
    for hook in hooks:
        hook.remove()
    rms = {key: torch.cat(rows).square().mean(0).sqrt() for key, rows in inputs.items()}
    return {(site, index): weight_of(site, index).abs() * values for (site, index), values in rms.items()}


@pytest.mark.parametrize("kind", ["linear", "conv1d", "lora"])
def test_activation_magnitude_is_the_norm_of_wanda_scores(kind):
    if kind == "conv1d":
        frozen = tiny_model(
            "gpt2", {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, **TOKEN_IDS}
        )

        def weights(site, index):
            return getattr(frozen.layers[index], {ATTENTION: "attention", MLP: "mlp"}[site]).weight.T
    else:
        frozen = tiny_model("llama", TINY)
        if kind == "lora":
            lora = LoraConfig(r=2, lora_alpha=8, target_modules=["o_proj", "down_proj"], init_lora_weights=False)
            adapted = get_peft_model(frozen.model, lora).eval().requires_grad_(False)
            frozen = find_sites(adapted.get_base_model())

        def weights(site, index):
            projection = frozen.layers[index].attention if site == ATTENTION else frozen.layers[index].mlp
            if kind == "linear":
                return projection.weight
            added = projection.lora_B["default"].weight @ projection.lora_A["default"].weight
            return projection.base_layer.weight + 4 * added

    chosen = tiny_examples(3)
    wanted = by_hand(frozen, chosen, weights)
    with Streams(frozen, INTERCHANGE) as streams:
        found = BASELINES["activation_magnitude"].score(streams, chosen, MicroBatches(2))
    for index, shape in enumerate(frozen.shapes):
        attention, mlp = wanted[ATTENTION, index], wanted[MLP, index]
        norms = {
            "attention_neuron": attention.norm(dim=0),
            "mlp_neuron": mlp.norm(dim=0),
            "mlp_output": mlp.norm(dim=1),
            "head": attention.unflatten(1, (shape.heads, -1)).norm(dim=(0, 2)),
            "block": (attention.norm() ** 2 + mlp.norm() ** 2).sqrt().reshape(1),
        }
        for name, values in norms.items():
            torch.testing.assert_close(found[name][index], values, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("sites", [(ATTENTION, MLP), (ATTENTION, MLP, MLP_OUTPUT)], ids=len)
def test_every_method_scores_the_nodes_that_the_ablation_can_close(llama, name, sites):
    """A circuit file has constants only of the sites that gates act on: by default not of the MLP's output."""
    tensors = {
        part: {site: torch.ones(1, 3, 1, max(map(SITE_WIDTH[site], llama.shapes))) for site in sites}
        for part in KINDS[name].tensors
    }
    closable = MLP_OUTPUT in sites or not tensors
    with Streams(llama, Ablation(name, **tensors)) as streams:
        for method, baseline in BASELINES.items():
            if baseline.only:
                continue
            (found,) = baseline.draw(streams, tiny_examples(2), MicroBatches(2), 1)
            assert found.keys() >= set(EVERYWHERE), method
            assert ("mlp_output" in found) == (closable and method != "integrated_gradients"), method


def test_random_scores_depend_on_their_seed_alone(llama):
    with Streams(llama, INTERCHANGE) as streams:
        first, again, other = (by_chance(streams, (), MicroBatches(1), seed=seed) for seed in (0, 0, 1))
    assert first.keys() == set(DENSE)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["head"], other["head"])


def test_padding_and_micro_batches_change_no_score(llama):
    with Streams(llama, INTERCHANGE) as streams:
        for name in NAMES:
            one, other = (
                BASELINES[name].score(streams, tiny_examples(4), p) for p in (MicroBatches(4), MicroBatches(1, padding="left"))
            )  # fmt: skip
            assert LEAVES[ATTENTION] in one
            for node, values in one.items():
                torch.testing.assert_close(values, other[node], rtol=1e-3, atol=1e-6, msg=f"{name} {node}")


def test_two_ranks_with_weights_in_pieces_score_as_one_does(tmp_path):
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in TINY.items() if k != "use_cache"}))
    model.save_pretrained(tmp_path)
    launch(2, "-m", "tests.helpers.zero3_baselines", str(tmp_path), str(DEEPSPEED_CONFIGS / "zero3.json"))
    found = load_file(tmp_path / "scores.safetensors")
    with Streams(find_sites(model.eval().requires_grad_(False)), INTERCHANGE) as streams:
        for name, baseline in BASELINES.items():
            for node, values in baseline.score(streams, tiny_examples(3), MicroBatches(1)).items():
                torch.testing.assert_close(found[f"{name}.{node}"], values, rtol=1e-4, atol=1e-8, msg=f"{name} {node}")


def test_every_baseline_has_a_label_and_only_random_ones_are_drawn_several_times():
    assert list(METHOD_LABELS) == [LEARNED_GATES, *BASELINES]
    assert len(set(METHOD_LABELS.values())) == len(METHOD_LABELS)
    seeds = []

    def score(*_, seed=None):
        seeds.append(seed)
        return {}

    for name, baseline in BASELINES.items():
        assert baseline.description and "\n" not in baseline.description
        baseline._replace(score=score).draw(
            SimpleNamespace(ablation=ZERO, frozen=SimpleNamespace(shapes=())), (), None, 3
        )
        assert seeds == ([0, 1, 2] if name == "random" else [None])
        seeds.clear()


@pytest.mark.parametrize("kind", ["pairs", "text"])
def test_taylor_is_the_gradient_of_the_weights_times_the_weights(llama, kind):
    """LLM-Pruner's definition, by autograd through transformers: |sum of gradient x weight| of a neuron's column."""
    windows = (
        random_windows() if kind == "text" else [e._replace(answers=(e.answers[0][:1],)) for e in tiny_examples(3)]
    )
    with Streams(llama, ZERO) as streams:
        found = BASELINES["taylor"].score(streams, windows, MicroBatches(2))
    weights = [layer.sites[MLP].weight.requires_grad_() for layer in llama.layers]
    try:
        loss = torch.zeros(())
        for example in windows:
            ids = example.clean + example.answers[0]
            logits = llama.model(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0]
            scored = logits[len(example.clean) - 1 :]
            loss = loss + torch.nn.functional.cross_entropy(scored, torch.tensor(example.answers[0])) / len(windows)
        gradients = torch.autograd.grad(loss, weights)
    finally:
        for weight in weights:
            weight.requires_grad_(False)
    for index, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
        expected = (weight * gradient).sum(0).abs().detach()
        torch.testing.assert_close(found["mlp_neuron"][index], expected, rtol=1e-3, atol=1e-6)
