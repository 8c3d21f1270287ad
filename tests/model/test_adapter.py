"""PEFT adapters that cannot be opened, do not fit or lack tensors, on the meta device and with weights."""

import pytest
import torch
from peft import AdaptionPromptConfig, IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bigcircuit.config.schema import ModelConfig
from bigcircuit.errors import UserError
from bigcircuit.model.load import EMBEDDED, load_frozen
from bigcircuit.model.resolve import resolve_model
from tests.helpers.broken_models import GIT_LFS_POINTER, content, json_values, tensors

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


def saved(folder, kind):
    """Save a new adapter of the embedded model; returns its folder."""
    torch.manual_seed(0)
    get_peft_model(AutoModelForCausalLM.from_pretrained(EMBEDDED), kind).save_pretrained(folder)
    return folder


def as_pickle(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


BROKEN = {
    "missing": (
        tensors(lambda found: found.pop(FIRST), WEIGHTS),
        f"{WEIGHTS} lacks {FIRST}, which {CONFIG} asks for; copy both files again",
    ),
    "empty": (tensors(dict.clear, WEIGHTS), f"lacks {FIRST} and 15 more"),
    "more modules": (json_values(CONFIG, target_modules=["q_proj", "v_proj", "k_proj"]), "k_proj.lora_A.weight and 7 more"),
    "dora": (json_values(CONFIG, use_dora=True), "q_proj.lora_magnitude_vector.weight and 7 more"),
    "shape": (
        tensors(lambda found: found.update({FIRST: found[FIRST][:, :-1].clone()}), WEIGHTS),
        "does not fit the model (RuntimeError: Error(s) in loading state_dict for PeftModel: size mismatch for base_model.model",
    ),
    "rank": (json_values(CONFIG, r=8), "does not fit the model (RuntimeError: Error(s) in loading state_dict"),
    "modules": (json_values(CONFIG, target_modules=["nonsense"]), "does not fit the model (Target modules {'nonsense'} not found"),
    "saved whole": (json_values(CONFIG, modules_to_save=["lm_head"]), "(KeyError: 'base_model.model.lm_head.weight')"),
    "alpha": (json_values(CONFIG, lora_alpha="x"), "does not fit the model (TypeError: "),
    "kind": (json_values(CONFIG, peft_type="NONSENSE"), "no PEFT adapter could be opened (KeyError: 'NONSENSE')"),
    "no kind": (json_values(CONFIG, peft_type=None), "no PEFT adapter could be opened (TypeError: The PeftConfig config"),
    "list": (content(CONFIG, b"[]"), "no PEFT adapter could be opened (TypeError: "),
    "no config": (lambda folder: (folder / CONFIG).unlink(), "no PEFT adapter could be opened (Can't find 'adapter_config.json'"),
    "pointer": (content(WEIGHTS, GIT_LFS_POINTER), f"{WEIGHTS} is a pointer of git-lfs; run git lfs pull there"),
    "cut off": (
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:-10]),
        f"{WEIGHTS} cannot be read (SafetensorError: ",
    ),
    "pickle": (as_pickle, f"{WEIGHTS} is not there, and no other format is read; save the adapter with save_pretrained of peft"),
}  # fmt: skip


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_adapter_is_refused_before_weights_are_loaded(tmp_path, change, message):
    folder = saved(tmp_path / "adapter", LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    change(folder)
    with pytest.raises(UserError) as refused:
        resolve_model(ModelConfig(adapter=str(folder)))
    assert str(refused.value).startswith(f"model.adapter {folder}: ") and message in str(refused.value)
    assert "\n" not in str(refused.value)


KINDS = {
    "lora": LoraConfig(r=4, target_modules=["q_proj", "down_proj"]),
    "pissa": LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights="pissa"),
    "whole": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "embeddings": LoraConfig(r=4, target_modules=["embed_tokens"]),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_adapters_as_peft_saves_them_fit(tmp_path, kind):
    resolved = resolve_model(ModelConfig(adapter=str(saved(tmp_path, kind))))
    assert resolved.unused_line is None
    assert len(resolved.load(torch.device("cpu")).layers) == 4


def test_unused_tensors_of_an_adapter_are_told(tmp_path):
    folder = saved(tmp_path, LoraConfig(r=4, target_modules=["q_proj"]))
    name = FIRST.replace(".0.", ".7.")
    tensors(lambda found: found.update({name: torch.zeros(4, 128)}), WEIGHTS)(folder)
    assert f"1 tensor(s) in the files are not used by the model, the first: {name}" in str(
        resolve_model(ModelConfig(adapter=str(folder))).unused_line
    )


def test_adapters_that_cannot_be_used(tmp_path):
    with pytest.raises(UserError, match="model.adapter .*nowhere: there is no such folder here, and no PEFT adapter"):
        load_frozen(ModelConfig(adapter=str(tmp_path / "nowhere")))
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    saved(tmp_path / "prompt", prompt)
    with pytest.raises(UserError, match="adds virtual tokens; use an adapter on the weights"):
        load_frozen(ModelConfig(adapter=str(tmp_path / "prompt")))


def test_names_that_match_no_module_are_told(tmp_path):
    kind = IA3Config(target_modules=["k_proj", "experts_down"], feedforward_modules=["experts_down"])
    resolved = resolve_model(ModelConfig(adapter=str(saved(tmp_path, kind))))
    assert resolved.adapter_notes == (
        f"model.adapter {tmp_path}: no module of the model is named experts_down, which {CONFIG} asks for; the adapter does "
        "nothing there",
    )
    assert resolved.adapter_notes[0] in resolved.notes


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_adapters_whose_names_all_match_have_no_note(tmp_path, kind):
    assert not resolve_model(ModelConfig(adapter=str(saved(tmp_path, kind)))).notes


def test_several_adapters_in_one_folder_are_named(tmp_path):
    kind = LoraConfig(r=4, target_modules=["q_proj"])
    for name in ("first", "second"):
        saved(tmp_path / name, kind)
    with pytest.raises(
        UserError, match=rf"holds the adapters first, second; set model.adapter to {tmp_path}/first or another"
    ):
        resolve_model(ModelConfig(adapter=str(tmp_path)))
    saved(tmp_path, kind)
    assert resolve_model(ModelConfig(adapter=str(tmp_path))).adapter_notes == (
        f"model.adapter {tmp_path}: holds other adapters too, which are not used: first, second",
    )
    assert not resolve_model(ModelConfig(adapter=str(tmp_path / "second"))).adapter_notes


def test_an_adapter_that_makes_more_layers_is_refused(tmp_path):
    saved(tmp_path, LoraConfig(r=4, target_modules=["q_proj"], layer_replication=[[0, 4], [2, 4]]))
    with pytest.raises(UserError, match=rf"model.adapter {tmp_path}: makes 6 layers of 4"):
        resolve_model(ModelConfig(adapter=str(tmp_path)))


def test_an_adapter_that_puts_modules_around_those_of_a_layer_is_refused(tmp_path):
    saved(tmp_path, AdaptionPromptConfig(adapter_len=2, adapter_layers=2, task_type="CAUSAL_LM"))
    with pytest.raises(UserError, match=rf"model.adapter {tmp_path}: "):
        resolve_model(ModelConfig(adapter=str(tmp_path)))
