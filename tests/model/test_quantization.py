"""Quantised weights: for every format that is loaded, logits and gradients of masks are those of the dequantised weights."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load
from bigcircuit.config.schema import ModelConfig
from bigcircuit.data.collate import collate
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.forward.streams import Streams
from bigcircuit.memory.estimate import Workload, resting
from bigcircuit.model.parameter_count import count_parameters
from bigcircuit.model.quantization import WEIGHT_FORMATS, finish_loading, quantization_of, weight_bytes_as
from bigcircuit.model.resolve import resolve_model
from bigcircuit.model.weight_files import EMBEDDED
from bigcircuit.train.resolve import resolve
from tests.helpers.launch import DEEPSPEED_CONFIGS, launch, option_words
from tests.helpers.pair_files import write_pairs
from tests.helpers.quantised_models import BY_HAND, BY_LIBRARY, needs, save_packed_experts, save_plain, save_quantised
from tests.helpers.short_runs import QUICK, run
from tests.helpers.tiny_models import TINY_CONFIGS, random_masks, tiny_examples, tiny_model

CPU = torch.device("cpu")
DTYPES = ("float32", "bfloat16")


def package_of(name):
    return WEIGHT_FORMATS[name].package


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Folder of a plain model."""
    return save_plain(tmp_path_factory.mktemp("plain") / "model")


@pytest.fixture(scope="module")
def saved(plain, tmp_path_factory):
    """Folders of a model in a format, and of the plain weights that it stands for, saved when asked for."""
    made = {}

    def folders(name):
        if package_of(name):
            needs(package_of(name))
        if name not in made:
            made[name] = save_quantised(name, plain, tmp_path_factory.mktemp("saved"))
        return made[name]

    return folders


def resolved(path, **settings):
    return resolve_model(ModelConfig(path=str(path), device="cpu", **settings))


def gradients(frozen):
    """Logits of a masked pass after a plain one without a graph, and the gradients of its masks, all in one tensor."""
    batch = collate([e._replace(clean=e.clean, corrupted=e.corrupted) for e in tiny_examples()], full=False)
    masks = random_masks(frozen, 1, len(batch.clean), requires_grad=True)
    with Streams(frozen, Ablation("interchange")) as streams:
        streams.reference(batch)
        logits = streams.masked(batch, lambda index: masks[index], 1)
        logits.float().pow(2).sum().backward()
    return logits.detach(), torch.cat([mask.grad.flatten().double() for layer in masks for mask in layer.values()])


FORMATS = [*BY_HAND, *BY_LIBRARY]


def test_every_format_is_tested():
    assert {*WEIGHT_FORMATS} == {*FORMATS, "mxfp4"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_experts_are_dequantised(tmp_path, dtype):
    meant = save_packed_experts(tmp_path)
    settings = AutoConfig.from_pretrained(tmp_path)
    quantization = quantization_of(ModelConfig(path=str(tmp_path)), settings)
    assert quantization.stored == "mxfp4" and not quantization.loaded
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype, **quantization.arguments(settings, CPU))
    finish_loading(model, quantization, dtype)
    found = dict(model.named_parameters())
    assert set(found) == set(meant)
    for name, parameter in found.items():
        assert parameter.dtype == dtype and parameter.equal(meant[name].to(dtype)), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FORMATS)
def test_gradients_are_those_of_the_dequantised_weights(saved, name, dtype):
    quantised, meant = saved(name)
    expected_logits, expected = gradients(resolved(meant, dtype=dtype).load(CPU))
    for asked in ("none", "dequantise"):
        frozen = resolved(quantised, dtype=dtype, quantization=asked).load(CPU)
        logits, found = gradients(frozen)
        assert torch.cosine_similarity(found, expected, 0) > 0.9999, asked
        torch.testing.assert_close(logits, expected_logits, rtol=0, atol=1e-5 if dtype == "float32" else 0.008)
        assert all(p.dtype == getattr(torch, dtype) or WEIGHT_FORMATS[name].bits for p in frozen.model.parameters())
        if asked == "dequantise":
            assert all(type(p) is torch.nn.Parameter and p.is_floating_point() for p in frozen.model.parameters())


@pytest.mark.parametrize("name", FORMATS)
def test_bytes_and_parameters_are_those_of_logical_shapes(saved, plain, name):
    quantised, _ = saved(name)
    found, before = resolved(quantised), resolved(plain)
    frozen = found.load(CPU)
    masks = {
        "attention_neuron": torch.rand(2, 128, generator=torch.Generator().manual_seed(0)) < 0.4,
        "mlp_neuron": torch.rand(2, 256, generator=torch.Generator().manual_seed(1)) < 0.4,
    }
    assert count_parameters(frozen, masks) == count_parameters(before.load(CPU), masks)
    bytes_ = weight_bytes_as(found.skeleton.model, found.quantization)
    dense = weight_bytes_as(before.skeleton.model, before.quantization)
    if WEIGHT_FORMATS[name].bits is None:
        assert bytes_ == dense
    else:
        assert 0.95 < bytes_ / held(frozen.model) < 1.08 and bytes_ < 0.4 * dense


def held(model):
    """Count the bytes of a model's weights and of what their libraries keep beside them."""
    total = 0
    for parameter in model.parameters():
        parts = [getattr(parameter, name, None) for name in ("qdata", "scale", "zero_point", "SCB")]
        if not torch.is_tensor(parts[0]):
            parts[0] = parameter.data
        if (state := getattr(parameter, "quant_state", None)) is not None:
            parts += [state.absmax, *([state.state2.absmax] if state.nested else [])]
        total += sum(part.numel() * part.element_size() for part in parts if torch.is_tensor(part))
    return total


@pytest.mark.parametrize(("asked", "package"), [("int8", "torchao"), ("nf4", "bitsandbytes")])
def test_a_run_on_weights_that_are_quantised_when_loaded_finds_what_the_dequantised_weights_give(
    tmp_path, asked, package
):
    needs(package)
    settings = {"target__total": 200, "train__steps": 6, "train__batch_size": 4, "task__size": 40}
    folder = run(tmp_path / "quantised", model__quantization=asked, **settings)
    circuit = Circuit.load(folder.circuit("0", 1))
    loaded = resolve_model(ModelConfig(quantization=asked, device="cpu")).load(CPU)
    weights = load_file(EMBEDDED / "model.safetensors")
    for name, module in loaded.model.named_modules():
        if f"{name}.weight" in weights and hasattr(module, "in_features") and name != "lm_head":
            with torch.no_grad():
                weights[f"{name}.weight"] = module(torch.eye(module.in_features)).T.contiguous()
    shutil.copytree(EMBEDDED, tmp_path / "meant")
    save_file(weights, tmp_path / "meant" / "model.safetensors", {"format": "pt"})
    other = run(tmp_path / "dequantised", model__path=str(tmp_path / "meant"), **settings)
    expected = Circuit.load(other.circuit("0", 1))
    found = torch.cat([circuit.log_alpha[name].flatten() for name in sorted(circuit.log_alpha)])
    meant = torch.cat([expected.log_alpha[name].flatten() for name in sorted(expected.log_alpha)])
    assert torch.cosine_similarity(found, meant, 0) > 0.9999 and found.sub(meant).abs().max() < 1e-4
    assert package in circuit.metadata["quantization"] and "quantization" not in expected.metadata
    assert package in json.loads(folder.summary.read_text())["quantization"]


def test_projections_of_gpt2_are_quantised_too_or_it_is_refused(tmp_path):
    for package in ("bitsandbytes", "torchao"):
        needs(package)
    plain = tiny_model("gpt2", TINY_CONFIGS["gpt2"][0]).model
    plain.save_pretrained(tmp_path)
    ids = torch.arange(3, 12).unsqueeze(0)
    with torch.no_grad():
        found = resolved(tmp_path, quantization="nf4").load(CPU).model(input_ids=ids).logits
        assert 0 < found.sub(plain(input_ids=ids).logits).abs().max() < 0.5 * found.abs().max()
    with pytest.raises(UserError, match="no projection of the model is quantised by it"):
        resolved(tmp_path, quantization="int8").load(CPU)


@pytest.mark.parametrize("name", ["bitsandbytes nf4", "torchao Int8WeightOnlyConfig"])
def test_an_adapter_on_quantised_weights(saved, tmp_path, name):
    quantised, meant = saved(name)
    torch.manual_seed(0)
    kind = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(meant), kind).eval()
    adapted.save_pretrained(tmp_path)
    frozen = resolved(quantised, adapter=str(tmp_path)).load(CPU)
    ids = torch.arange(3, 12).unsqueeze(0)
    with torch.no_grad():
        torch.testing.assert_close(frozen.model(input_ids=ids).logits, adapted(input_ids=ids).logits, rtol=0, atol=1e-5)


def changed(quantised, folder, edit=None, **settings):
    """Copy a quantised model with changes of its tensors and of its quantization_config."""
    shutil.copytree(quantised, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {**config.get("quantization_config", {}), **settings}
    (folder / "config.json").write_text(json.dumps(config))
    if edit:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


SCALE = "model.layers.1.mlp.down_proj.weight_scale"
TWO = {
    f"group_{bits}": {"targets": [f"{part}_proj"], "weights": {"num_bits": bits}} for part, bits in (("q", 8), ("v", 4))
}


@pytest.mark.parametrize(
    ("edit", "settings", "message"),
    [
        (lambda found: found.pop(SCALE), {}, f"has {SCALE.removesuffix('_scale')} without a scale"),
        (None, {"config_groups": TWO}, "quantise weights in 2 ways, of which transformers dequantises one"),
        (None, {"transform_config": {"config_groups": {"R1": {}}}}, "has a transform_config, which is lost"),
        (None, {"sparsity_config": {"format": "sparse-24-bitmask"}}, "has a sparsity_config, which is lost"),
        (
            None,
            {"format": "nvfp4-pack-quantized"},
            "quantised as compressed-tensors nvfp4-pack-quantized, which is not among",
        ),
    ],
)
def test_what_would_be_lost_is_refused_before_weights_are_loaded(saved, tmp_path, edit, settings, message):
    quantised, _ = saved("compressed-tensors int-quantized")
    with pytest.raises(UserError) as refused:
        resolved(changed(quantised, tmp_path / "model", edit, **settings))
    assert message.replace("has model", "have model") in str(refused.value) and "\n" not in str(refused.value)


def test_blocks_that_do_not_divide_a_weight_are_refused(saved, tmp_path):
    quantised, _ = saved("fp8")

    def smaller(found):
        for part, rows in (("weight", 192), ("weight_scale_inv", 2)):
            key = f"model.layers.1.mlp.up_proj.{part}"
            found[key] = found[key][:rows].contiguous()

    with pytest.raises(
        UserError, match=r"up_proj.weight of 192 x 128 is quantised in blocks of 128 x 128, which do not divide it"
    ):
        resolved(changed(quantised, tmp_path / "model", smaller))


@pytest.mark.parametrize("method", ["awq", "gptq", "hqq", "quanto", "aqlm", "bitnet", "something"])
def test_formats_that_no_gradient_is_known_to_pass_are_refused(plain, tmp_path, method):
    with pytest.raises(UserError, match=f"quantised as {method}, which is not among the formats that gradients pass"):
        resolved(changed(plain, tmp_path / "model", quant_method=method, bits=4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantization": "dequantise"}, "the weights are not quantised; set it to none"),
        ({"quantization": "nf4", "weights": "stream"}, "model.quantization nf4 cannot have model.weights stream"),
    ],
)
def test_settings_that_do_not_go_together(plain, settings, message):
    needs("bitsandbytes")
    with pytest.raises(UserError, match=message):
        resolved(plain, **settings)


def test_quantised_weights_are_neither_quantised_again_nor_divided_nor_streamed(saved):
    quantised, _ = saved("bitsandbytes nf4")
    with pytest.raises(UserError, match="quantised already .bitsandbytes nf4.; set it to none or dequantise"):
        resolved(quantised, quantization="int8")
    with pytest.raises(UserError, match=r"quantised .bitsandbytes nf4., cannot be divided over ranks by ZeRO stage 3"):
        resolve_model(ModelConfig(path=str(quantised)), "configs/deepspeed/zero3.json")
    with pytest.raises(UserError, match="cannot have model.weights stream"):
        resolved(quantised, weights="stream")


def test_a_package_that_is_absent_is_asked_for(plain, tmp_path, monkeypatch):
    monkeypatch.setattr("bigcircuit.config.extras.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"model.quantization int8: .*pip install 'bigcircuit\[quantization\]'"):
        resolved(plain, quantization="int8")
    with pytest.raises(
        UserError, match=r"quantised as compressed-tensors int-quantized: reading this needs compressed-tensors"
    ):
        resolved(changed(plain, tmp_path / "model", quant_method="compressed-tensors", format="int-quantized"))


def test_check_predicts_less_memory_for_quantised_weights():
    needs("torchao")

    def allocated(quantization):
        config = load(
            None, {"model.quantization": quantization, "target.total": 200, "task.size": 40, "model.device": "cpu"}
        )
        found = resolve(config, Ranks())
        return resting(found, Workload.of(found.data.splits, 1), is_gpu=True).allocated

    plain, quantised = allocated("none"), allocated("int8")
    assert quantised["frozen weights"] < 0.45 * plain["frozen weights"]
    assert "a dequantised projection" in quantised and "a dequantised projection" not in plain


def test_weights_that_are_dequantised_when_loaded_are_divided_over_ranks(saved, tmp_path):
    quantised, _ = saved("fp8")
    pairs = write_pairs(
        tmp_path / "pairs.jsonl",
        (
            {"clean": [5, 6, 7 + i], "corrupted": [5, 8, 7 + i], "answers": [[9]], "wrong_answers": [[10]]}
            for i in range(24)
        ),
    )
    settings = {
        **QUICK,
        "task.name": "pairs",
        "task.path": pairs,
        "train.steps": 4,
        "train.micro_batch_size": 2,
        "target.total": 100,
    }
    divided = {
        "model.path": str(quantised),
        "deepspeed": str(DEEPSPEED_CONFIGS / "zero3.json"),
        "output": str(tmp_path / "two"),
    }
    launch(2, "launchers/prune.py", *option_words({**settings, **divided}))
    plain = {key.replace(".", "__"): value for key, value in settings.items()}
    folder = run(tmp_path / "one", model__path=str(quantised), **plain)
    one, two = (Circuit.load(path / "circuit.safetensors") for path in (folder.path, tmp_path / "two"))
    for name in one.masks:
        assert one.masks[name].equal(two.masks[name])
    for name in one.log_alpha:  # short suffixes are rounded otherwise in pieces, plain weights too
        torch.testing.assert_close(one.log_alpha[name], two.log_alpha[name], rtol=0, atol=1e-5)
    assert one.log_alpha and "dequantised when they are loaded" in two.metadata["quantization"]
