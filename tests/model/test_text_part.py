"""Multimodal checkpoints: on texts the language part is the whole model, and no weight of another part is loaded."""

import json
from inspect import getsource

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForImageTextToText

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.config.schema import ModelConfig
from bigcircuit.data.collate import collate
from bigcircuit.errors import UserError
from bigcircuit.forward.streams import Streams
from bigcircuit.model.load import load_config, skeleton
from bigcircuit.model.resolve import resolve_model
from bigcircuit.model.sites import architecture_of
from bigcircuit.model.text_part import MULTIMODAL, language_part, model_class, other_parts, text_config
from tests.helpers.multimodal_models import CONFIGS, save_multimodal
from tests.helpers.tiny_models import constant_masks, random_masks, tiny_examples

IDS = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0))
NEEDS_ROUNDING = ("paligemma", "qwen3_5_moe")
"""Types whose wrapper hands over a whole mask where the language model computes with a flag, or whose experts see other rows."""


def opens(name: str) -> bool:
    """Whether the language model of a type is one that can be masked."""
    try:
        architecture_of(text_config(AutoConfig.for_model(name, **CONFIGS[name])))
    except UserError:
        return False
    return True


MASKED = [name for name in MULTIMODAL if opens(name)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of a type's model, saved when asked for."""
    made = {}

    def folder(name):
        if name not in made:
            made[name] = save_multimodal(name, tmp_path_factory.mktemp(name))
        return str(made[name])

    return folder


@pytest.fixture
def whole(saved):
    """The whole model of a type as transformers opens it."""

    def opened(name):
        model = AutoModelForImageTextToText.from_pretrained(saved(name)).eval()
        if name == "paligemma" and "final_logit_softcapping" not in getsource(type(model)):
            pytest.skip("this transformers leaves out the softcap of the logits of PaliGemma")
        return model

    return opened


@pytest.mark.parametrize("name", MULTIMODAL)
def test_on_texts_the_language_part_is_the_whole_model(saved, whole, name):
    settings = AutoConfig.from_pretrained(saved(name))
    model, info = model_class(settings).from_pretrained(saved(name), output_loading_info=True)
    part = language_part(model.eval())
    mask = torch.ones_like(IDS)
    mask[1, -3:] = 0
    with torch.no_grad():
        expected = whole(name)(input_ids=IDS, attention_mask=mask, use_cache=False).logits[mask.bool()]
        found = part(input_ids=IDS, attention_mask=mask, use_cache=False).logits[mask.bool()]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 if name in NEEDS_ROUNDING else 0)
    assert not info["missing_keys"]
    others = tuple(f"{part}." for part in other_parts(settings))
    assert info["unexpected_keys"] and all(key.startswith(others) for key in info["unexpected_keys"])
    assert not any("vision" in name or "visual" in name for name, _ in part.named_modules())


@pytest.mark.parametrize("name", MASKED)
def test_open_is_the_whole_model_and_closed_the_corrupted_one(saved, whole, name):
    resolved = resolve_model(ModelConfig(path=saved(name), device="cpu"))
    frozen = resolved.load(torch.device("cpu"))
    shapes = {key: value.shape for key, value in frozen.model.named_parameters()}
    assert shapes == {key: value.shape for key, value in resolved.skeleton.model.named_parameters()}
    assert resolved.shapes == frozen.shapes and resolved.unused_line is None
    stored = safe_open(f"{saved(name)}/model.safetensors", "pt").keys()
    taken = other_parts(AutoConfig.from_pretrained(saved(name)))
    crossing = [f".layers.{part.rpartition('.layers.')[2]}." for part in taken if ".layers." in part]  # texts skip them
    parts = ("vision", "visual", "projector", "connector", *crossing)
    others = [key for key in stored if any(part in key for part in parts)]
    assert resolved.not_loaded == len(others)
    kind = resolved.hf_config.model_type
    assert f"opened on its language model ({kind}) alone: {len(others)} tensor(s)" in resolved.notes[0]
    batch, plain = collate(tiny_examples(), full=False), whole(name)
    with torch.no_grad():
        logits = [
            plain(input_ids=ids, attention_mask=batch.attention_mask, use_cache=False).logits
            for ids in (batch.clean, batch.corrupted)
        ]
    clean, corrupted = (one[batch.score_row, batch.score_position] for one in logits)
    with torch.no_grad(), Streams(frozen, Ablation("interchange")) as streams:
        for value, expected in ((1.0, clean), (0.0, corrupted)):
            found = streams.masked(batch, constant_masks(frozen, value, 2), 2)
            for member in found:
                torch.testing.assert_close(member, expected, rtol=0, atol=1e-5)
        found = streams.masked(batch, constant_masks(frozen, 1.0), 1)[0]
        torch.testing.assert_close(found, streams.reference(batch), rtol=0, atol=1e-5 if name in NEEDS_ROUNDING else 0)


def test_gradients_of_masks_arrive(saved):
    frozen = resolve_model(ModelConfig(path=saved("gemma3"), device="cpu")).load(torch.device("cpu"))
    batch = collate(tiny_examples(), full=False)
    masks = random_masks(frozen, 1, len(batch.clean), requires_grad=True)
    with Streams(frozen, Ablation("interchange")) as streams:
        streams.masked(batch, lambda index: masks[index], 1).sum().backward()
    assert all(mask.grad is not None and mask.grad.abs().sum() > 0 for layer in masks for mask in layer.values())


def test_an_adapter_of_the_whole_model_is_put_on_its_language_part(saved, whole, tmp_path):
    kind = LoraConfig(r=2, target_modules=r".*language_model.*\.(q_proj|down_proj)", init_lora_weights=False)
    adapted = get_peft_model(whole("llava"), kind)
    adapted.save_pretrained(tmp_path)
    resolved = resolve_model(ModelConfig(path=saved("llava"), adapter=str(tmp_path), device="cpu"))
    with torch.no_grad():
        found = resolved.load(torch.device("cpu")).model(input_ids=IDS).logits
        assert found.equal(adapted.eval()(input_ids=IDS).logits)
    assert resolved.unused_line is None


def test_tensors_of_the_language_model_that_are_missing_are_told(tmp_path):
    folder = save_multimodal("llava", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = next(key for key in tensors if key.endswith("layers.1.mlp.down_proj.weight") and "language" in key)
    save_file(
        {key: value for key, value in tensors.items() if key != name}, folder / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(UserError, match=r"model\.safetensors lacks .*layers\.1\.mlp\.down_proj\.weight"):
        resolve_model(ModelConfig(path=str(folder)))


def test_a_type_that_no_test_covers_is_refused(tmp_path):
    config = {"model_type": "video_llava", "text_config": {"model_type": "llama"}, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        UserError, match="model type 'video_llava' holds a language model of type 'llama' among other models"
    ):
        load_config(ModelConfig(path=str(tmp_path)))


def test_the_embedded_model_is_opened_as_before():
    meta = skeleton(ModelConfig())
    assert type(meta.model).__name__ == "LlamaForCausalLM" and not other_parts(load_config(ModelConfig()))
