"""Activations kept in few bits for the backward pass."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from bigcircuit.ablation.ablation import INTERCHANGE, ZERO
from bigcircuit.config.load import load, members
from bigcircuit.data.collate import collate
from bigcircuit.data.pair import Example
from bigcircuit.forward.few_bits import GROUP, few_bits, pack, unpack
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.population import Population
from bigcircuit.model.sites import find_sites


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("bits", "steps"), [(8, 254), (4, 14)])
@pytest.mark.parametrize("width", [GROUP, 8, 100])
def test_each_value_is_off_by_half_a_step_of_its_group_at_most(bits, steps, dtype, width):
    values = (torch.randn(2, 5, width, generator=torch.Generator().manual_seed(0)) * 3).to(dtype)
    found = unpack(pack(values, bits))
    assert (found.shape, found.dtype) == (values.shape, dtype)
    padded = torch.nn.functional.pad(values.float(), (0, -width % GROUP)).view(2, 5, -1, GROUP)
    step = (2 * padded.abs().amax(-1, keepdim=True) / steps).expand_as(padded).reshape(2, 5, -1)[..., :width]
    rounding = 0 if dtype == torch.float32 else 0.01 * values.float().abs() + 0.01 * step * steps
    assert ((found.float() - values.float()).abs() <= 0.5001 * step + rounding).all()
    assert torch.equal(unpack(pack(torch.zeros(1, 2, width), bits)), torch.zeros(1, 2, width))


def test_bytes_of_a_value():
    values = torch.randn(4, 8, 256)
    for bits in (8, 4):
        packed = pack(values, bits)
        kept = sum(one.numel() * one.element_size() for one in (packed.codes, packed.scales))
        assert kept == values.numel() * bits // 8 + values.numel() // GROUP * 4


def models():
    torch.manual_seed(0)
    llama = LlamaConfig(vocab_size=300, hidden_size=64, intermediate_size=160, num_hidden_layers=3, num_attention_heads=4,
                        num_key_value_heads=2)  # fmt: skip
    gpt2 = GPT2Config(vocab_size=300, n_embd=64, n_layer=3, n_head=4, n_positions=64)
    return {"llama": LlamaForCausalLM(llama), "gpt2": GPT2LMHeadModel(gpt2)}


def gradient(model, saved, ablation, count=2):
    """Loss and gradient of all gates, and the bytes that the graph keeps besides parameters."""
    frozen = find_sites(model.eval().requires_grad_(False))
    generator = torch.Generator().manual_seed(1)
    prompts = torch.randint(3, 300, (2, 6, 24), generator=generator)
    prompts[1, :, :8] = prompts[0, :, :8]
    examples = [
        Example(id=i, clean=tuple(a), corrupted=tuple(b), answers=((5,),), wrong_answers=((6,),), source="")
        for i, (a, b) in enumerate(zip(*prompts.tolist(), strict=True))
    ]
    settings = {"population.seeds": count, "gates.parametrisation": "hard_concrete"}
    population = Population.new(members(load(None, settings)), frozen.shapes)
    batch = collate(examples, full=False, padding="aligned")
    with Streams(frozen, ablation) as streams:
        recorded = streams.record(batch, ["attention", "mlp"]) if ablation is INTERCHANGE else None
        with few_bits(saved):
            logits = streams.masked(batch, population.draw(range(6)), count, recorded)
        loss = logits.log_softmax(-1)[..., 5].sum()
        found = torch.autograd.grad(loss, [*population.parameters()])
    return loss.detach(), torch.cat([one.flatten() for one in found])


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("ablation", [INTERCHANGE, ZERO], ids=["interchange", "zero"])
def test_the_forward_pass_is_exact_and_the_gradient_is_near(name, ablation):
    model = models()[name]
    loss, exact = gradient(model, "exact", ablation)
    errors = {}
    for saved in ("8bit", "4bit"):
        same, found = gradient(model, saved, ablation)
        assert torch.equal(same, loss)
        errors[saved] = float((found - exact).norm() / exact.norm())
    assert 0 < errors["8bit"] < 0.02 < errors["4bit"] < 0.4


def test_no_bit_of_a_member_depends_on_the_others():
    model = models()["llama"]
    alone, beside = (gradient(model, "4bit", INTERCHANGE, count)[1] for count in (1, 3))
    # The parameters of members follow each other, and member 0 has the same seed in both.
    assert torch.equal(alone, beside[: len(alone)])


@pytest.mark.parametrize(("settings", "named"), [
    ({"train.checkpointing": True}, "train.checkpointing"), ({"model.weights": "stream"}, "model.weights stream"),
])  # fmt: skip
def test_what_does_not_go_with_few_bits_is_refused(settings, named):
    from bigcircuit.distributed.ranks import Ranks
    from bigcircuit.errors import UserError
    from bigcircuit.train.resolve import resolve

    with pytest.raises(UserError, match=f"train.saved is 8bit, which does not go with {named}"):
        resolve(load(None, {"train.saved": "8bit", **settings}), Ranks())
