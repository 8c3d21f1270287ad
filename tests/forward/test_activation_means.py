"""Constants in the place of closed nodes: means against a loop with plain hooks, the pass against a model edited by hand."""

import pytest
import torch

from bigcircuit.ablation.ablation import INTERCHANGE, ZERO, Ablation
from bigcircuit.config.schema import ModelConfig
from bigcircuit.data.collate import collate
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.forward.activation_means import mean_ablation, moments
from bigcircuit.forward.streams import Streams
from bigcircuit.model.granularity import SITE_WIDTH
from bigcircuit.model.load import load_frozen
from tests.helpers.edited_models import edited
from tests.helpers.tiny_models import (
    DENSE_SITES,
    TINY,
    TINY_CONFIGS,
    constant_masks,
    random_masks,
    tiny_examples,
    tiny_model,
)

SITES = DENSE_SITES


@pytest.fixture(scope="module")
def frozen():
    return tiny_model("llama", TINY)


def random_constants(frozen, members=1, positions=1, requires_grad=False):
    generator = torch.Generator().manual_seed(5)
    sizes = {
        site: max(width(shape) for shape in frozen.shapes) for site, width in SITE_WIDTH.items() if site in DENSE_SITES
    }
    layers = len(frozen.shapes)
    return {
        site: torch.randn(members, layers, positions, n, generator=generator).requires_grad_(requires_grad)
        for site, n in sizes.items()
    }


def by_loop(frozen, chosen, prompts):
    """Every activation of every prompt, one prompt at a time: (layer, site) -> list of float64 [T, n]."""
    seen: dict = {}

    def note(index, site, value):
        seen.setdefault((index, site), []).append(value[0].double())
        return value

    with torch.no_grad(), edited(frozen, note):
        for example in chosen:
            for name in prompts:
                tokens = torch.tensor([getattr(example, name) + example.answers[0][:-1]])
                frozen.model(input_ids=tokens, use_cache=False)
    return seen


@pytest.mark.parametrize("prompts", ["corrupted", "clean", "both"])
@pytest.mark.parametrize(("padding", "size"), [("right", 2), ("left", 2), ("left", 1), ("right", 5)])
def test_means_are_those_of_a_loop_over_single_prompts(frozen, prompts, padding, size):
    chosen, micro_batches = tiny_examples(5), MicroBatches(size, padding=padding)
    names = ("clean", "corrupted") if prompts == "both" else (prompts,)
    overall = mean_ablation(frozen, chosen, micro_batches, prompts=prompts)
    by_position = mean_ablation(frozen, chosen, micro_batches, True, prompts)
    deviation = moments(frozen, chosen, micro_batches, per_position=False, prompts=prompts).deviation
    assert (overall.name, by_position.name) == ("mean", "mean_per_position")
    longest = max(len(e.clean) for e in chosen) + 1  # the answer has two tokens, and the first is given
    for (index, site), values in by_loop(frozen, chosen, names).items():
        tokens = torch.cat(values)
        torch.testing.assert_close(overall.constants[site][0, index, 0].double(), tokens.mean(0), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(deviation[site][index].double(), tokens.std(0, correction=0), atol=1e-6, rtol=1e-4)
        found = by_position.constants[site][0, index]
        assert len(found) == longest + 1
        for position in range(longest):
            column = torch.stack([value[position] for value in values if len(value) > position])
            torch.testing.assert_close(found[position].double(), column.mean(0), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(found[-1], overall.constants[site][0, index, 0], atol=1e-7, rtol=1e-6)


def by_hand(frozen, tokens, masks, constants, member):
    """Logits [T, V] of the plain model with mask x activation + (1 - mask) x constant at every site of one prompt [T]."""

    def change(index, site, value):
        mask, rows = masks[index][site], constants[site][min(member, len(constants[site]) - 1), index]
        ablated = rows[torch.arange(len(tokens)).clamp(max=len(rows) - 1), : value.shape[-1]]
        return mask * value + (1 - mask) * ablated

    with edited(frozen, change):
        return frozen.model(input_ids=tokens.unsqueeze(0), use_cache=False).logits[0]


@pytest.mark.parametrize(("members", "positions"), [(1, 1), (2, 1), (1, 6), (2, 9)])
@pytest.mark.parametrize(("padding", "checkpointing"), [("right", False), ("left", True)])
def test_pass_and_gradients_are_those_of_the_model_edited_by_hand(frozen, members, positions, padding, checkpointing):
    chosen = tiny_examples(3)
    batch = collate(chosen, full=False, padding=padding)
    masks = random_masks(frozen, 2, 3, requires_grad=True)
    constants = random_constants(frozen, members, positions, requires_grad=True)
    wanted = [values for layer in masks for values in layer.values()] + list(constants.values())
    weights = torch.randn(2, len(batch.score_row), 96, generator=torch.Generator().manual_seed(2))
    with Streams(frozen, Ablation("mean", constants), checkpointing) as streams:
        found = streams.masked(batch, lambda index: masks[index], 2)
        gradients = torch.autograd.grad((found * weights).sum(), wanted)
    total = torch.zeros(())
    for member in range(2):
        for row, example in enumerate(chosen):
            own = [{site: values[member, row] for site, values in layer.items()} for layer in masks]
            tokens = torch.tensor(example.clean + example.answers[0][:-1])
            logits = by_hand(frozen, tokens, own, constants, member)[len(example.clean) - 1 :]
            here = batch.example_of_score == row
            torch.testing.assert_close(found[member, here], logits, atol=2e-5, rtol=1e-4)
            total = total + (logits * weights[member, here]).sum()
    for ours, theirs in zip(gradients, torch.autograd.grad(total, wanted), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-3)


def test_zero_ablation_is_a_mean_of_zero(frozen):
    batch, nothing = collate(tiny_examples(3), full=False), {s: c * 0 for s, c in random_constants(frozen).items()}
    masks = random_masks(frozen, 2, 3)
    with torch.no_grad(), Streams(frozen, ZERO) as streams:
        zero = streams.masked(batch, lambda index: masks[index], 2)
        with streams.under(Ablation("mean", nothing)):
            mean = streams.masked(batch, lambda index: masks[index], 2)
        with streams.under(INTERCHANGE):
            other = streams.masked(batch, lambda index: masks[index], 2)
        again = streams.masked(batch, lambda index: masks[index], 2)
    torch.testing.assert_close(zero, mean, atol=1e-6, rtol=1e-5)
    assert torch.equal(zero, again) and not torch.allclose(zero, other, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "gpt_neox"])
def test_open_is_the_plain_model_bit_for_bit_and_closed_is_exactly_the_constant(name, dtype):
    frozen = tiny_model(name, TINY_CONFIGS[name][0])
    frozen.model.to(dtype)
    batch = collate(tiny_examples(3), full=False)
    constants = random_constants(frozen, 2, requires_grad=True)
    seen = {}
    with Streams(frozen, Ablation("optimal", constants)) as streams:
        opened = streams.masked(batch, constant_masks(frozen, 1.0, 2), 2)
        for member in range(2):
            assert torch.equal(opened[member], streams.reference(batch))
        handles = [
            layer.mlp.register_forward_pre_hook(
                lambda _m, args, i=i: seen.update({i: args[0]})
            )  # after the project's own
            for i, layer in enumerate(frozen.layers)
        ]
        logits = streams.masked(batch, constant_masks(frozen, 0.0, 2), 2)
        for handle in handles:
            handle.remove()
        logits.float().square().sum().backward()
    for index, value in seen.items():
        rows = value.reshape(2, -1, value.shape[-1])
        for member in range(2):
            exact = constants["mlp"][member, index, 0, : value.shape[-1]].detach().to(dtype)
            assert torch.equal(rows[member], exact.expand(rows[member].shape))
    # With all outputs of the MLPs closed nothing inside them matters.
    assert constants["mlp"].grad.abs().max() == 0 and constants["mlp_output"].grad.abs().max() > 0
    for values in constants.values():
        assert values.grad.dtype == torch.float32 and torch.isfinite(values.grad).all()


@pytest.mark.parametrize("name", ["mean", "mean_per_position", "optimal"])
def test_no_corrupted_stream_is_run(frozen, name):
    batch, rows = collate(tiny_examples(2), full=False), []
    handle = frozen.layers[0].module.self_attn.register_forward_hook(lambda _m, _a, out: rows.append(len(out[0])))
    constants = random_constants(frozen, 2 if name == "optimal" else 1, 4 if name == "mean_per_position" else 1)
    with torch.no_grad(), Streams(frozen, Ablation(name, constants)) as streams:
        streams.masked(batch, constant_masks(frozen, 0.5, 2), 2)
    handle.remove()
    assert rows == [4], "two members, two prompts, no more"


def test_streams_inside_others_leave_them_as_they_were(frozen):
    batch, masks = collate(tiny_examples(2), full=False), random_masks(frozen, 1, 2)
    with torch.no_grad(), Streams(frozen, INTERCHANGE) as streams:
        before = streams.masked(batch, lambda index: masks[index], 1)
        mean_ablation(frozen, tiny_examples(2), MicroBatches(2))
        assert torch.equal(streams.masked(batch, lambda index: masks[index], 1), before)
    assert all("forward" not in layer.module.__dict__ for layer in frozen.layers)


def test_everything_ablated_is_a_closed_form_of_a_real_model(shared):
    """induction_2L1H with all nodes closed: embeddings, plus the images of the means, through the final norm."""
    frozen = load_frozen(ModelConfig(path=str(shared / "models/induction_2L1H")))
    chosen = [e._replace(clean=tuple(t % 26 for t in e.clean[:7]), corrupted=tuple(t % 26 for t in e.corrupted[:7]),
                         answers=((3,),), wrong_answers=((4,),)) for e in tiny_examples(6)]  # fmt: skip
    mean = mean_ablation(frozen, chosen, MicroBatches(4), True).constants
    batch, model = collate(chosen, full=False), frozen.model.transformer
    with torch.no_grad(), Streams(frozen, Ablation("mean_per_position", mean)) as streams:
        found = streams.masked(
            batch, lambda i: {s: torch.zeros(1, 1, SITE_WIDTH[s](frozen.shapes[i])) for s in SITES[:2]}, 1
        )
        stream = model.wte.weight[torch.tensor([e.clean[-1] for e in chosen])] + model.wpe.weight[6]
        for index, layer in enumerate(frozen.layers):
            for site, projection in (("attention", layer.attention), ("mlp", layer.mlp)):
                stream = stream + mean[site][0, index, 6] @ projection.weight + projection.bias
        wanted = model.ln_f(stream) @ frozen.head.weight.T
    torch.testing.assert_close(found[0], wanted, atol=1e-4, rtol=1e-4)
