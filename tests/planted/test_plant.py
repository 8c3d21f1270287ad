"""Planted models: equal to what they are made of, decoys active and not needed, the truth exact and needed."""

import json
from collections import defaultdict

import pytest
import torch
from transformers import AutoModelForCausalLM

from bigcircuit.ablation.ablation import INTERCHANGE, ZERO
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.masks import complete_masks
from bigcircuit.config.load import load
from bigcircuit.data.collate import collate
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.score import score
from bigcircuit.model.granularity import ATTENTION, MLP
from bigcircuit.model.sites import find_sites
from bigcircuit.planted import plant, recovery
from bigcircuit.planted.base import examples_of, knockouts, make_base
from bigcircuit.planted.decoys import NEEDED
from bigcircuit.planted.recovery import kept_by_kind
from bigcircuit.prune import prune
from tests.helpers.tiny_models import TINY, TOKEN_IDS, tiny_model

SITES = {"attention_neuron": ATTENTION, "mlp_neuron": MLP}


def opened(path):
    return AutoModelForCausalLM.from_pretrained(path).eval().requires_grad_(False)


def assert_equal_on_random_tokens(planted, model, length: int):
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(0, model.config.vocab_size, (20, length), generator=generator)
    wide = opened(planted.folder)
    with torch.no_grad():
        wanted, found = model(tokens, use_cache=False).logits, wide(tokens, use_cache=False).logits
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    assert wide.config.num_attention_heads >= 3 * model.config.num_attention_heads


FAMILIES = {
    "llama": TINY,
    "qwen3": {**TINY, "tie_word_embeddings": True},
    "starcoder2": TINY,
    "gpt2": {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 48, "n_positions": 64, **TOKEN_IDS},
}


@pytest.mark.parametrize("family", FAMILIES)
def test_planted_models_equal_their_originals(family, tmp_path):
    model = tiny_model(family, FAMILIES[family]).model
    planted = plant(model, tmp_path, seed=1)
    assert_equal_on_random_tokens(planted, model, 12)
    kinds = {kind for row in planted.kinds["head"] + planted.kinds["mlp_neuron"] for kind in row}
    normed = family in ("gpt2", "starcoder2")
    assert kinds == {"original", "shared", "silent", "opposed", "inner"} | ({"unread"} if normed else set())
    for name in planted.kinds:
        in_truth = [[kind in NEEDED for kind in row] for row in planted.kinds[name]]
        assert planted.truth[name].tolist() == in_truth
    assert [sum(row) for row in planted.truth["mlp_neuron"].tolist()] == [48 + 10] * len(planted.kinds["head"])
    stored = Circuit.load(tmp_path / "truth/circuit.safetensors")
    assert all(torch.equal(stored.masks[name], mask) for name, mask in planted.truth.items())


@pytest.mark.parametrize("name", ["stories260k", "babyllama105"])
def test_pretrained_models_can_be_planted(shared, name, tmp_path):
    model = opened(shared / "models" / name)
    assert_equal_on_random_tokens(plant(model, tmp_path, seed=2), model, 40)


def test_the_embedded_model_can_be_planted(embedded, tmp_path):
    frozen, tokenizer = embedded
    planted = plant(frozen.model, tmp_path, seed=2, tokenizer=tokenizer)
    assert_equal_on_random_tokens(planted, frozen.model, 40)
    assert (tmp_path / "tokenizer.json").exists()


def test_the_padding_head_of_the_induction_model_makes_room(shared, tmp_path):
    model = opened(shared / "models/induction_2L1H")
    needed = {
        "attention_neuron": torch.zeros(2, 128, dtype=torch.bool),
        "mlp_neuron": torch.zeros(2, 4, dtype=torch.bool),
    }
    needed["attention_neuron"][:, :64] = True
    planted = plant(model, tmp_path, seed=0, needed=needed, shared=0)
    assert_equal_on_random_tokens(planted, model, 8)
    assert [sum(row) for row in planted.truth["head"].tolist()] == [1, 1]
    assert not planted.truth["mlp"].any()


@pytest.fixture(scope="module")
def sharp(tmp_path_factory):
    """A planted base with its pairs."""
    base = make_base("gpt2", seed=1)
    folder = tmp_path_factory.mktemp("planted") / "model"
    planted = plant(base.model, folder, seed=1, needed=base.needed)
    assert_equal_on_random_tokens(planted, base.model, 4)
    return base, planted, find_sites(opened(folder))


@pytest.mark.parametrize("ablation", [INTERCHANGE, ZERO], ids=lambda a: a.name)
def test_no_circuit_depends_on_its_decoys(sharp, ablation):
    """Random circuits of needed nodes: silent and unread ones open or closed at will, opposed ones in pairs."""
    base, planted, frozen = sharp
    generator = torch.Generator().manual_seed(0)
    chosen = examples_of(base.pairs[:30])
    circuits = []
    for part in range(6):
        bare, dressed = {}, {}
        for name in SITES:
            mask = torch.rand(planted.truth[name].shape, generator=generator) < 0.7
            free = torch.tensor([[kind in ("silent", "unread") for kind in row] for row in planted.kinds[name]])
            pairs = torch.tensor([[kind == "opposed" for kind in row] for row in planted.kinds[name]])
            bare[name] = mask & planted.truth[name]
            dressed[name] = bare[name] | (mask & free) | (pairs if part % 2 else torch.zeros_like(pairs))
        circuits += [complete_masks(bare, frozen.shapes), complete_masks(dressed, frozen.shapes)]
    with Streams(frozen, ablation) as streams:
        found = score(streams, chosen, circuits, MicroBatches(30))
    assert found["kl"].mean(1)[0] > 0.1
    for values in found.values():
        torch.testing.assert_close(values[0::2], values[1::2], atol=1e-4, rtol=1e-4)


def test_the_truth_is_exact_and_all_of_it_is_needed(sharp):
    base, planted, frozen = sharp
    chosen = examples_of(base.pairs[1::2])  # others than those it was made sharp on
    with Streams(frozen, INTERCHANGE) as streams:
        assert score(streams, chosen, [planted.truth], MicroBatches(110))["kl"].max() < 1e-6
    costs = defaultdict(list)
    for (name, layer, node), cost in knockouts(frozen, chosen).items():
        costs[planted.kinds[name][layer][node]].append(cost)
    assert base.least > 0.1
    assert min(costs["original"]) > 0.05
    assert min(costs["shared"]) > 0.005
    assert max(costs["silent"] + costs["unread"]) < 1e-6
    assert min(costs["opposed"]) > 1e-4, "either one alone matters"


def test_decoys_are_as_active_as_originals(sharp):
    """The same size, and as different between clean and corrupted prompts."""
    base, planted, frozen = sharp
    batch = collate(examples_of(base.pairs[:100]), full=False)
    seen = defaultdict(list)
    with Streams(frozen, INTERCHANGE) as streams:
        for tokens in (batch.clean, batch.corrupted):
            streams.watch(batch, tokens, lambda index, site, value: seen[site, index].append(value.clone()))
    for name, site in SITES.items():
        sizes, changes = defaultdict(list), defaultdict(list)
        for index, row in enumerate(planted.kinds[name]):
            clean, corrupted = seen[site, index]
            for kind, size, change in zip(
                row, clean.square().mean((0, 1)), (clean - corrupted).square().mean((0, 1)), strict=True
            ):
                sizes[kind].append(size.item())
                changes[kind].append(change.item())
        own = {"sizes": sizes["original"] + sizes["shared"], "changes": changes["original"] + changes["shared"]}
        for kind in ("silent", "unread", "opposed"):
            for values, mine in ((sizes[kind], own["sizes"]), (changes[kind], own["changes"])):
                assert 0.3 < (sum(values) / len(values)) / (sum(mine) / len(mine)) < 3, (name, kind)
                assert min(values) > 0


def test_what_is_written_is_found_by_the_program(sharp, tmp_path):
    base, planted, frozen = sharp
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in base.pairs))
    size = int(planted.truth["head"].sum())
    config = load(
        None,
        {
            "model.path": str(planted.folder),
            "task.name": "pairs",
            "task.path": str(tmp_path / "pairs.jsonl"),
            "train.steps": 150,
            "target.head": size,
            "output": str(tmp_path / "run"),
        },
    )
    masks = Circuit.load(prune(config, Ranks()).path / "circuit.safetensors").masks
    found = recovery({"head": masks["head"].float()}, planted.truth, "head", frozen.shapes, kept=masks)
    assert found.precision == found.recall > 0.7
    shares = kept_by_kind(masks, planted.kinds, ["head"])
    assert shares["original"] > shares["opposed"]


def test_what_cannot_be_planted_is_refused_in_one_line(tmp_path):
    model = tiny_model("llama", TINY).model
    needed = {
        "attention_neuron": torch.ones(3, 32, dtype=torch.bool),
        "mlp_neuron": torch.ones(3, 48, dtype=torch.bool),
    }
    needed["mlp_neuron"][1, 5] = False
    with pytest.raises(UserError, match="MLP neurons that are not needed write"):
        plant(model, tmp_path, 0, needed=needed)
    with pytest.raises(UserError, match="'gpt_neox' cannot be widened"):
        plant(tiny_model("gpt_neox", {**TINY, "num_key_value_heads": 4}).model, tmp_path, 0)
    assert not any(tmp_path.iterdir())
