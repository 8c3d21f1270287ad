"""The two-stream pass against a forward written by hand, and what must never change a number."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from benchmarks.saved_bytes import count_saved
from bigcircuit.ablation.ablation import INTERCHANGE, Ablation
from bigcircuit.config.load import load, members
from bigcircuit.data.collate import collate
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.population import Population
from bigcircuit.metrics.logit_metrics import kl_divergence
from bigcircuit.model.granularity import SITE_WIDTH
from tests.helpers.tiny_models import TINY, constant_masks, random_masks, tiny_examples, tiny_model


@pytest.fixture(scope="module")
def frozen():
    return tiny_model("llama", TINY)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


def by_hand(frozen, clean: Tensor, corrupted: Tensor, masks, zero: bool) -> Tensor:
    """Llama for one unpadded prompt [T], both streams side by side, straight from the formulas; logits [T, V]."""
    model, config = frozen.model.model, frozen.model.config
    heads, groups, size = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    tokens = len(clean)
    angle = torch.outer(torch.arange(tokens).float(), 10000.0 ** (-torch.arange(0, size, 2).float() / size))
    cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
    hidden = [model.embed_tokens(corrupted), model.embed_tokens(clean)]
    for layer, mask in zip(model.layers, masks, strict=True):
        inputs: list[dict[str, Tensor]] = []
        for stream in (0, 1):
            x = rms_norm(hidden[stream], layer.input_layernorm.weight, config.rms_norm_eps)
            q, k, v = (getattr(layer.self_attn, f"{n}_proj")(x).view(tokens, -1, size).transpose(0, 1) for n in "qkv")
            k, v = k.repeat_interleave(heads // groups, 0), v.repeat_interleave(heads // groups, 0)
            scores = rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(1, 2) / size**0.5
            scores = scores.masked_fill(torch.ones(tokens, tokens).triu(1).bool(), -float("inf"))
            site = (scores.softmax(-1) @ v).transpose(0, 1).reshape(tokens, -1)
            inputs.append({"attention": site})
            if stream == 1:
                other = 0 if zero else inputs[0]["attention"]
                site = mask["attention"] * site + (1 - mask["attention"]) * other
            hidden[stream] = hidden[stream] + layer.self_attn.o_proj(site)
            x = rms_norm(hidden[stream], layer.post_attention_layernorm.weight, config.rms_norm_eps)
            site = silu(layer.mlp.gate_proj(x)) * layer.mlp.up_proj(x)
            inputs[stream]["mlp"] = site
            if stream == 1:
                site = mask["mlp"] * site + (1 - mask["mlp"]) * (0 if zero else inputs[0]["mlp"])
            out = layer.mlp.down_proj(site)
            inputs[stream]["mlp_output"] = out
            if stream == 1:
                out = mask["mlp_output"] * out + (1 - mask["mlp_output"]) * (0 if zero else inputs[0]["mlp_output"])
            hidden[stream] = hidden[stream] + out
    return frozen.model.lm_head(rms_norm(hidden[1], model.norm.weight, config.rms_norm_eps))


@pytest.mark.parametrize("ablation", ["interchange", "zero"])
@pytest.mark.parametrize("padding", ["left", "right"])
def test_masked_pass_equals_the_formulas(frozen, ablation, padding):
    chosen = tiny_examples(3)
    batch = collate(chosen, full=False, padding=padding)
    masks = random_masks(frozen, 2, 3)
    with torch.no_grad(), Streams(frozen, Ablation(ablation)) as streams:
        found = streams.masked(batch, lambda index: masks[index], 2)
    for member in range(2):
        for row, example in enumerate(chosen):
            forced = example.answers[0][:-1]
            own = [{site: values[member, row] for site, values in layer.items()} for layer in masks]
            with torch.no_grad():
                logits = by_hand(
                    frozen,
                    torch.tensor(example.clean + forced),
                    torch.tensor(example.corrupted + forced),
                    own,
                    ablation == "zero",
                )
            wanted = logits[len(example.clean) - 1 :]
            torch.testing.assert_close(found[member, batch.example_of_score == row], wanted, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_mask_gradients_equal_those_of_the_formulas(frozen, checkpointing):
    chosen = tiny_examples(2)
    batch = collate(chosen, full=False)
    masks = random_masks(frozen, 1, 2, requires_grad=True)
    flat = [values for layer in masks for values in layer.values()]
    weights = torch.randn(len(batch.score_row), 96, generator=torch.Generator().manual_seed(2))
    with Streams(frozen, INTERCHANGE, checkpointing) as streams:
        found = torch.autograd.grad((streams.masked(batch, lambda i: masks[i], 1)[0] * weights).sum(), flat)
    total = torch.zeros(())
    for row, example in enumerate(chosen):
        own = [{site: values[0, row] for site, values in layer.items()} for layer in masks]
        tokens = (torch.tensor(prompt + example.answers[0][:-1]) for prompt in (example.clean, example.corrupted))
        logits = by_hand(frozen, *tokens, own, zero=False)[len(example.clean) - 1 :]
        total = total + (logits * weights[batch.example_of_score == row]).sum()
    for ours, wanted in zip(found, torch.autograd.grad(total, flat), strict=True):
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-3)


def test_finite_differences():
    frozen = tiny_model("llama", TINY)
    frozen.model.double()
    batch = collate(tiny_examples(2), full=False)
    masks = [{site: v.double().detach() for site, v in layer.items()} for layer in random_masks(frozen, 1, 2)]
    masks[1]["mlp"].requires_grad_()
    with Streams(frozen, INTERCHANGE) as streams:
        reference = streams.reference(batch)

        def loss() -> Tensor:
            return kl_divergence(reference, streams.masked(batch, lambda i: masks[i], 1), batch).double().sum()

        (gradient,) = torch.autograd.grad(loss(), masks[1]["mlp"])
        for neuron in (0, 17, 40):
            with torch.no_grad():
                ends = []
                for sign in (1, -1):
                    masks[1]["mlp"][0, 1, neuron] += sign * 1e-2
                    ends.append(loss())
                    masks[1]["mlp"][0, 1, neuron] -= sign * 1e-2
            # The KL is computed in float32, which bounds how well a difference can be resolved.
            assert (ends[0] - ends[1]).item() / 2e-2 == pytest.approx(gradient[0, 1, neuron].item(), abs=2e-4, rel=2e-2)


def test_checkpointing_changes_no_gradient_and_keeps_less(frozen):
    batch, ids = collate(tiny_examples(3), full=False), [0, 1, 2]
    population = Population.new(members(load(None, {"population.seeds": 2})), frozen.shapes)
    gradients, sizes = [], []
    for checkpointing in (False, True):
        with Streams(frozen, INTERCHANGE, checkpointing) as streams, count_saved(frozen.model) as saved:
            logits = streams.masked(batch, population.draw(ids), 2)
            gradients.append(torch.autograd.grad(logits.sin().sum(), list(population.parameters())))
        sizes.append(saved.total)
    for plain, again in zip(*gradients, strict=True):
        assert torch.equal(plain, again)
    assert sizes[1] < 0.4 * sizes[0]


def test_hooks_are_removed_after_an_error(frozen):
    batch = collate(tiny_examples(2), full=False)
    before = frozen.model(input_ids=batch.clean).logits
    with pytest.raises(RuntimeError, match="on purpose"), Streams(frozen, INTERCHANGE) as streams:

        def fail(_: int):
            raise RuntimeError("on purpose")

        streams.masked(batch, fail, 1)
    assert torch.equal(frozen.model(input_ids=batch.clean).logits, before)
    assert all("forward" not in layer.module.__dict__ for layer in frozen.layers)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in frozen.model.modules())


def test_zero_ablation_runs_no_corrupted_stream(frozen):
    batch = collate(tiny_examples(2), full=False)
    rows = []
    handle = frozen.layers[0].module.self_attn.register_forward_hook(
        lambda _module, _args, out: rows.append(out[0].shape[0])
    )
    masks = random_masks(frozen, 2, 2)
    with torch.no_grad():
        for ablation in ("zero", "interchange"):
            with Streams(frozen, Ablation(ablation)) as streams:
                streams.masked(batch, lambda i: masks[i], 2)
    handle.remove()
    assert rows == [4, 2, 4]


def test_bfloat16_model_keeps_float32_gates():
    frozen = tiny_model("llama", TINY)
    frozen.model.bfloat16()
    batch = collate(tiny_examples(2), full=False)
    population = Population.new(members(load(None)), frozen.shapes)
    with Streams(frozen, INTERCHANGE) as streams:
        open_masks = [
            {s: torch.ones(1, 1, w(shape)) for s, w in SITE_WIDTH.items() if w(shape)} for shape in frozen.shapes
        ]
        assert torch.equal(streams.masked(batch, lambda i: open_masks[i], 1)[0], streams.reference(batch))
        logits = streams.masked(batch, population.draw([0, 1]), 1)
        logits.float().sum().backward()
    for parameter in population.parameters():
        assert parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()


def test_the_model_itself_is_plain_between_passes(frozen):
    batch = collate(tiny_examples(2), full=False)
    before = frozen.model(input_ids=batch.clean).logits
    masks = random_masks(frozen, 1, 2)
    with Streams(frozen, INTERCHANGE, checkpointing=True) as streams:
        masks[0]["mlp"].requires_grad_()
        streams.masked(batch, lambda i: masks[i], 1).sum().backward()
        assert torch.equal(frozen.model(input_ids=batch.clean).logits, before)


def test_open_gates_are_the_plain_model_where_few_positions_are_scored():
    """On some processors the product of a wide hidden state with the vocabulary has other last bits for fewer than 16 rows."""
    wide = TINY | {"hidden_size": 1664, "num_hidden_layers": 1, "head_dim": 8}
    frozen, batch = tiny_model("llama", wide), collate(tiny_examples(), full=False)
    assert len(batch.score_row) < 16
    with torch.no_grad(), Streams(frozen, INTERCHANGE) as streams:
        opened = streams.masked(batch, constant_masks(frozen, 1.0), 1)[0]
        plain = frozen.model(batch.clean, attention_mask=batch.attention_mask, position_ids=batch.position_ids).logits
    assert torch.equal(opened, plain[batch.score_row, batch.score_position])
