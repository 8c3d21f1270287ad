"""Sizes that suit an export hold exactly in the circuit, or are refused before training."""

import json

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.models import build_tiny
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.cli import answer, run_export, run_prune
from bigcircuit.config.load import load
from bigcircuit.config.sizes import TargetConfig
from bigcircuit.errors import UserError
from bigcircuit.gates.discretise import count, discretise
from bigcircuit.model.granularity import GATED, GRANULARITIES, granularities_of, node_counts, widest
from bigcircuit.model.parameter_count import count_parameters
from bigcircuit.model.sites import find_sites
from bigcircuit.train.layer_sizes import check_layer_sizes, sized_masks
from bigcircuit.train.targets import count_targets
from tests.helpers.short_runs import QUICK
from tests.helpers.tiny_models import TINY, tiny_model

L, H, K, D, F = 3, 4, 2, 4, 10
"""Layers, query heads, key/value heads, head width and MLP neurons of the model."""


@pytest.fixture(scope="module")
def frozen():
    sizes = {"num_hidden_layers": L, "num_attention_heads": H, "num_key_value_heads": K, "intermediate_size": F}
    return tiny_model("llama", {**sizes, "hidden_size": H * D, "head_dim": D})


def gates(seed: int = 0) -> dict[str, torch.Tensor]:
    """log_alpha of single neurons, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    sizes = {"block": 1, "attention_neuron": H * D, "mlp_neuron": F}
    return {name: torch.randn(L, width, generator=generator) for name, width in sizes.items()}


def per_layer(masks) -> list[tuple[int, ...]]:
    return [tuple(int(masks[name][layer].sum()) for name in ("kv_group", "head", "mlp_neuron")) for layer in range(L)]


def test_without_such_settings_the_masks_are_those_of_discretise(frozen):
    log_alpha = gates()
    found = sized_masks(log_alpha, frozen, TargetConfig(total=30))
    expected = discretise(log_alpha, frozen.shapes, {"total": 30})
    assert all(bool((found[name] == expected[name]).all()) for name in expected)


@pytest.mark.parametrize("seed", range(4))
def test_equal_layers_keep_the_strongest_heads_and_neurons(frozen, seed):
    log_alpha = gates(seed)
    masks = sized_masks(log_alpha, frozen, TargetConfig(head=6, kv_group=6, mlp_neuron=12, per_layer="uniform"))
    assert per_layer(masks) == [(2, 2, 4)] * L
    assert count(masks)["total"] == L * (2 * D + 4)
    for layer in range(L):
        chain, own = (
            torch.minimum(log_alpha[name][layer], log_alpha["block"][layer]).double()
            + 1e-9 * (log_alpha[name][layer] + log_alpha["block"][layer]).double()
            for name in ("attention_neuron", "mlp_neuron")
        )
        best = chain.view(K, H // K, D).amax(-1).argmax(-1)  # the strongest head of each group
        assert masks["head"][layer].view(K, -1).int().argmax(-1).tolist() == best.tolist()
        assert masks["mlp_neuron"][layer].nonzero().flatten().tolist() == sorted(own.topk(4).indices.tolist())


def test_a_total_is_met_from_below_in_equal_layers_and_multiples(frozen):
    for total in range(24, L * (H * D + F) + 1, 6):
        target = TargetConfig(total=total, per_layer="uniform", multiple_of=4)
        masks = sized_masks(gates(), frozen, target)
        [sizes] = set(per_layer(masks))
        assert sizes[2] in (4, 8) and sizes[1] % sizes[0] == 0 and count(masks)["total"] <= total
        more = L * (sizes[1] * D + sizes[2] + 4)
        assert more > total or sizes[2] == 8, "another multiple would fit"


def test_kept_blocks_alone_are_equal(frozen):
    log_alpha = gates()
    masks = sized_masks(log_alpha, frozen, TargetConfig(block=2, mlp_neuron=10, head=4, per_layer="uniform"))
    kept = [sizes for sizes in per_layer(masks) if any(sizes)]
    assert len(kept) == 2 and {sizes[1:] for sizes in kept} == {(2, 5)}


def test_a_total_beside_neurons_holds_and_a_small_one_keeps_the_blocks(frozen):
    """The free choice keeps whole MLPs, of which the total has room for one."""
    target = TargetConfig(total=L * (D + 6) + 3, mlp_neuron=L * 6, per_layer="uniform")
    assert count(sized_masks(gates(), frozen, target))["total"] == L * (D + 6)
    whole = {"head": torch.full((L, H), -1.0), "mlp": torch.ones(L, 1)}
    masks = sized_masks(whole, frozen, TargetConfig(block=2, total=2 * (D + 1), per_layer="uniform"))
    assert sorted(per_layer(masks)) == [(0, 0, 0), (1, 1, 1), (1, 1, 1)]


def test_multiples_leave_mlp_outputs_as_they_were_chosen(frozen):
    log_alpha = gates() | {"mlp_output": torch.randn(L, H * D, generator=torch.Generator().manual_seed(5))}
    free = sized_masks(log_alpha, frozen, TargetConfig())
    masks = sized_masks(log_alpha, frozen, TargetConfig(multiple_of=2))
    kept = masks["mlp_neuron"].any(1)
    assert bool(kept.any()) and bool((~free["mlp_output"][kept]).any())
    assert bool((masks["mlp_output"][kept] == free["mlp_output"][kept]).all())


@pytest.mark.parametrize("share", [0.35, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("uniform", ["free", "uniform"])
def test_a_share_of_the_parameters_is_never_exceeded_and_nearly_reached(frozen, share, uniform):
    total = round(share * L * (H * D + F))  # as `count_targets` resolves the share
    masks = sized_masks(gates(), frozen, TargetConfig(parameters=share, total=total, per_layer=uniform))
    found = count_parameters(frozen, masks)
    assert found.kept <= share * found.total
    node = (
        4 * D * H * D + 5 * H * D
    )  # a head with its key and value, a neuron and the norms: more would be another node
    assert found.kept > share * found.total - (node if uniform == "free" else L * node)


def test_multiples_without_equal_layers_lose_less_than_one_in_all(frozen):
    for total in (30, 45, 60):
        free = sized_masks(gates(), frozen, TargetConfig(total=total))
        masks = sized_masks(gates(), frozen, TargetConfig(total=total, multiple_of=5))
        widths = masks["mlp_neuron"].sum(1)
        assert bool((widths % 5 == 0).all())
        assert 0 <= int(free["mlp_neuron"].sum() - widths.sum()) < 5
        assert bool((masks["attention_neuron"] == free["attention_neuron"]).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"mlp_neuron": 10, "per_layer": "uniform"},
            "target.mlp_neuron is 10 and has to be the same in 3 blocks: give 9 or 12",
        ),
        ({"head": 4, "per_layer": "uniform"}, "target.head is 4 and has to be the same in 3 blocks: give 3 or 6"),
        ({"head": 9, "kv_group": 6, "per_layer": "uniform"}, "no number of key/value groups (of 2) with equally many"),
        ({"mlp_neuron": 10, "multiple_of": 4}, "has to be multiples of target.multiple_of: give 8 or 12"),
        ({"multiple_of": 64}, "target.multiple_of is 64 and an MLP of the model has 10 neurons"),
        ({"total": 10, "per_layer": "uniform"}, "the smallest circuit of equal layers keeps 15"),
        ({"parameters": 0.01, "per_layer": "uniform"}, "the smallest circuit of equal layers keeps 0.26 of"),
        ({"mlp": 2, "per_layer": "uniform"}, "leave target.mlp out"),
        (
            {"block": 2, "mlp_neuron": 24, "per_layer": "uniform"},
            "target.mlp_neuron is 24 and 2 blocks keep 20 at most",
        ),
        ({"parameters": 0.5, "total": 10}, "target.parameters and target.total are both set"),
    ],
)
def test_sizes_that_no_circuit_has_are_one_line(frozen, settings, message):
    names = ["block", "mlp", "kv_group", "head", "attention_neuron", "mlp_neuron"]
    config = load(None, {"gates.granularities": names, **{f"target.{key}": value for key, value in settings.items()}})
    nodes = {"block": 3, "mlp": 3, "kv_group": 6, "head": 12, "attention_neuron": 48, "mlp_neuron": 30, "total": 78}
    with pytest.raises(UserError) as error:
        check_layer_sizes(count_targets([config], nodes), frozen)
    assert message in str(error.value) and "\n" not in str(error.value)


EXPERTS = {
    **TINY,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "shared_expert_intermediate_size": 24,
}


def test_experts_without_gates_set_the_least_share():
    mixture = tiny_model("qwen2_moe", EXPERTS)
    nodes = node_counts(mixture.shapes, list(GRANULARITIES))

    def checked(settings):
        counted = count_targets([load(None, {f"target.{key}": value for key, value in settings.items()})], nodes)
        check_layer_sizes(counted, mixture)
        return counted[0].target

    with pytest.raises(
        UserError, match=r"target\.parameters is 0\.5, and with a single neuron .* of the parameters are kept"
    ):
        checked({"parameters": 0.5, "expert": 12})
    target = checked({"parameters": 0.5, "expert": 5})
    gates = {name: torch.randn(3, widest(mixture.shapes, name)) for name in granularities_of(mixture.shapes, GATED)}
    masks = sized_masks(gates, mixture, target)
    counted = count_parameters(mixture, masks)
    assert count(masks)["expert"] == 5 and 0.47 < counted.kept / counted.total <= 0.5


def test_a_share_of_a_hybrid_can_be_all_of_its_mixers():
    hybrid = find_sites(build_tiny("olmo_hybrid"))
    gates = {
        name: torch.randn(len(hybrid.shapes), widest(hybrid.shapes, name))
        for name in granularities_of(hybrid.shapes, GATED)
    }
    masks = sized_masks(gates, hybrid, TargetConfig(parameters=1.0))
    counted = count_parameters(hybrid, masks)
    assert counted.kept == counted.total


def test_a_trained_population_has_the_sizes_and_its_uniform_export_cuts_without_padding(tmp_path):
    words = {key: value for key, value in QUICK.items() if key != "target.total"} | {
        "ablation.kind": "zero",
        "target.per_layer": "uniform",
        "target.multiple_of": 32,
        "population.members": '[{"target.parameters": 0.3}, {"target.parameters": 0.6}]',
        "output": str(tmp_path / "run"),
    }
    assert answer(run_prune, [f"--{key}={value}" for key, value in words.items()]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    for row, share in zip(summary["members"], (0.3, 0.6), strict=True):
        circuit = Circuit.load(tmp_path / "run" / row["circuit"])
        assert row["parameters_kept"] <= share and row["layout"]["per_layer"] == "uniform"
        widths = circuit.masks["mlp_neuron"].sum(1).unique().tolist()
        heads = circuit.masks["head"].sum(1).unique().tolist()
        assert len(widths) == len(heads) == 1 and widths[0] % 32 == 0
        out = tmp_path / f"small-{share}"
        export = [str(tmp_path / "run" / row["circuit"]), "--config", str(tmp_path / "run"), "--format", "uniform"]
        assert answer(run_export, [*export, "--output", str(out), "--speed", "false"]) == 0
        found = json.loads((out / "export.json").read_text())
        assert found["verification"]["largest_difference"] <= found["verification"]["tolerance"]
        assert not any("padding" in note or "twice" in note for note in found["notes"])
        layers = {n: t.numel() for n, t in load_file(out / "model.safetensors").items() if ".layers." in n}
        assert sum(layers.values()) == row["parameters"]["kept"]


@pytest.mark.parametrize("parametrisation", ["sigmoid_top_k", "hard_concrete"])
def test_training_sees_the_share_by_which_the_circuit_is_decided(tmp_path, parametrisation):
    words = {key: value for key, value in QUICK.items() if key != "target.total"} | {
        "gates.granularities": "[head, mlp_neuron]",
        "gates.parametrisation": parametrisation,
        "target.parameters": 0.5,
        "train.log_every": 1,
        "output": str(tmp_path / "run"),
    }
    assert answer(run_prune, [f"--{key}={value}" for key, value in words.items()]) == 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    shares = [row["open.parameters"] for row in rows if "open.parameters" in row]
    if parametrisation == "sigmoid_top_k":
        assert shares[-1] == pytest.approx(0.5, rel=1e-3) and shares[0] > 0.9
    else:
        assert [row["dual.parameters"] for row in rows if "dual.parameters" in row][-1] > 0
    kept = json.loads((tmp_path / "run/summary.json").read_text())["members"][0]["parameters_kept"]
    assert 0.48 < kept <= 0.5
