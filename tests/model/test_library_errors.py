"""What libraries raise on files of the user becomes one line, before weights are loaded."""

import json

import pytest
import torch

from bigcircuit.errors import UserError
from bigcircuit.model.library_errors import explain_library_errors, library_message
from bigcircuit.model.resolve import resolve_model
from tests.helpers.broken_models import GIT_LFS_POINTER, changed_model, content, json_values

CONFIG, TOKENIZER = "config.json", "tokenizer.json"
NO_SPECIAL_TOKEN = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
    "pair": [],
    "special_tokens": {},
}
CONFIGS = {
    "no JSON": (content(CONFIG, b"{not json"), "config.json cannot be opened (It looks like the config file at"),
    "null": (content(CONFIG, b"null"), "config.json cannot be opened (TypeError: "),
    "deep": (content(CONFIG, b"[" * 100_000), "config.json cannot be opened (RecursionError: "),
    "pointer": (content(CONFIG, GIT_LFS_POINTER), "config.json is a pointer of git-lfs; run git lfs pull there"),
    "absent": (lambda folder: (folder / CONFIG).unlink(), "Should have a `model_type` key in its config.json"),
    "type": (
        json_values(CONFIG, hidden_size="64"),
        "(StrictDataclassFieldValidationError: Validation error for field 'hidden_size': TypeError: Field 'hidden_size' expected "
        "int, got str (value: '64')); mend the file, or copy or download the model again",
    ),
    "heads": (json_values(CONFIG, num_attention_heads=3), "is not a multiple of the number of attention heads (3)"),
    "activation": (json_values(CONFIG, hidden_act="nonsense"), "no model can be built from config.json (KeyError: 'nonsense')"),
    "negative": (json_values(CONFIG, vocab_size=-5), "no model can be built from config.json (RuntimeError: "),
    "zero": (json_values(CONFIG, num_key_value_heads=0), "no model can be built from config.json (ZeroDivisionError: "),
    "no layers": (json_values(CONFIG, num_hidden_layers=0), "has no decoder layer"),
    "dtype": (json_values(CONFIG, dtype="nonsense"), "config.json cannot be opened (AttributeError: "),
    "another class": (json_values(CONFIG, model_type="falcon"), "config.json cannot be opened (AttributeError: "),
    "kernel": (json_values(CONFIG, attn_implementation="flash_attention_2"), "FlashAttention2 has been toggled on"),
    "other weights": (json_values(CONFIG, transformers_weights="x.safetensors"), "transformers_weights 'x.safetensors'; take"),
    "outputs": (json_values(CONFIG, return_dict=False), "config.json has return_dict False; take it out"),
    "several models": (json_values(CONFIG, model_type="video_llava"), "of type 'llama' among other models, and is not one"),
    "adapter": (
        content("adapter_config.json", json.dumps({"peft_type": "LORA"}).encode()),
        "holds adapter_config.json, so it is an adapter; set model.adapter to it and model.path to the model",
    ),
}  # fmt: skip
BAD_QUANTISED = {
    "config_groups": [],
    "sparsity_config": 3,
    "weight_block_size": "128",
    "modules_to_not_convert": [1],
}
"""Part of a quantization_config -> a value of another type."""
QUANTISED = {
    method: (json_values(CONFIG, quantization_config={"quant_method": method, **more}), message)
    for method, more, message in (
        (
            "bitsandbytes",
            {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
            "needs bitsandbytes; pip install 'bigcircuit[quant",
        ),
        (
            "torchao",
            {"quant_type": {"default": {"_type": "Int8WeightOnlyConfig"}}},
            "needs torchao; pip install 'bigcircuit[quant",
        ),
        ("compressed-tensors", {"format": "int-quantized"}, "needs compressed-tensors; pip install 'bigcircuit[quant"),
    )
}
TOKENIZERS = {
    "no JSON": (content(TOKENIZER, b"{not json"), "(Expecting property name"),
    "list": (content(TOKENIZER, b"[]"), "(TypeError: "),
    "pointer": (content(TOKENIZER, GIT_LFS_POINTER), "tokenizer.json is a pointer of git-lfs"),
    "model": (json_values(TOKENIZER, model={"type": "Nonsense"}), "(Exception: data did not match any variant"),
    "version": (json_values(TOKENIZER, version="9.0"), "(Exception: Unknown tokenizer version '9.0'"),
    "first use": (json_values(TOKENIZER, post_processor=NO_SPECIAL_TOKEN), "(PanicException: no entry found for key)"),
    "config": (content("tokenizer_config.json", b"[]"), "Error: "),
    "special token": (json_values("tokenizer_config.json", bos_token=5), "(TypeError: Special token bos_token has to be"),
    "length": (json_values("tokenizer_config.json", model_max_length="x"), "(TypeError: "),
    "other files": (content("special_tokens_map.json", b"{"), "(Expecting property name"),
    "absent": (lambda folder: (folder / TOKENIZER).unlink(), "Couldn't instantiate the backend tokenizer"),
}  # fmt: skip


def refusal(tmp_path, change):
    """Resolve the changed model; returns the message of the error after the name of the folder."""
    config = changed_model(tmp_path / "model", change)
    with pytest.raises(UserError) as refused:
        resolve_model(config)
    message = str(refused.value)
    assert "\n" not in message and len(message) < 700
    return message


@pytest.mark.parametrize(("change", "message"), CONFIGS.values(), ids=CONFIGS)
def test_a_broken_config_is_one_line(tmp_path, change, message):
    assert message in refusal(tmp_path, change)


@pytest.mark.parametrize(("change", "message"), QUANTISED.values(), ids=QUANTISED)
def test_quantised_weights_whose_package_is_absent_are_refused(tmp_path, change, message, monkeypatch):
    monkeypatch.setattr("bigcircuit.config.extras.find_spec", lambda _: None)
    found = refusal(tmp_path, change)
    assert "its weights are quantised as " in found and message in found


@pytest.mark.parametrize("version", ["5.9.0", "5.22.2"])
def test_quantised_weights_are_refused_by_releases_of_transformers_that_leave_them_packed(
    tmp_path, version, monkeypatch
):
    """Packed experts are zero there, without a word."""
    monkeypatch.setattr("transformers.__version__", version)
    found = refusal(tmp_path, json_values(CONFIG, quantization_config={"quant_method": "mxfp4"}))
    assert f"reading this needs transformers 5.23 or newer, here is {version}; pip install" in found


@pytest.mark.parametrize(("part", "value"), BAD_QUANTISED.items())
def test_a_quantisation_config_of_another_shape_is_one_line(tmp_path, part, value):
    found = refusal(tmp_path, json_values(CONFIG, quantization_config={"quant_method": "fp8", part: value}))
    assert f"quantization_config.{part}" in found and "in config.json is not as it should be" in found


@pytest.mark.parametrize(("change", "message"), TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_broken_tokenizer_is_one_line(tmp_path, change, message):
    found = refusal(tmp_path, change)
    assert "the tokenizer cannot be opened" in found and message in found


def test_a_broken_generation_config_does_not_matter(tmp_path):
    resolve_model(changed_model(tmp_path / "model", content("generation_config.json", b"[]"))).load(torch.device("cpu"))


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("out of memory"), RuntimeError("not enough memory"), KeyboardInterrupt()],
    ids=lambda error: type(error).__name__,
)
def test_memory_and_interrupts_pass(error):
    with pytest.raises(type(error)) as raised, explain_library_errors("x", None, "y"):
        raise error
    assert raised.value is error


def test_errors_of_other_ranks_pass():
    import torch.distributed as dist

    with pytest.raises(RuntimeError, match="No rendezvous handler"), explain_library_errors("x", None, "y"):
        dist.init_process_group("gloo", rank=0, world_size=1, init_method="nonsense://")


def test_messages():
    assert library_message(ValueError("a\nb")) == "a"
    assert library_message(ValueError("a:\n\n  b\nc")) == "a: b"
    assert library_message(KeyError("a")) == "KeyError: 'a'"
    assert library_message(OSError()) == "OSError"
    assert library_message(ValueError("x" * 1000)) == "x" * 300 + "..."
