"""GGUF files: read back by transformers, which undoes the layout, and by the package gguf."""

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("gguf", reason="the package gguf is not here (pip install 'bigcircuit[gguf]')")

from gguf import GGUFReader
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bigcircuit.ablation.ablation import ZERO
from bigcircuit.circuit.masks import complete_masks
from bigcircuit.config.schema import ModelConfig
from bigcircuit.errors import UserError
from bigcircuit.export.gguf_tokenizer import read_tokenizer
from bigcircuit.export.verify import Prompts, compare_outputs, run_fresh, run_masked
from bigcircuit.model.load import load_frozen
from bigcircuit.model.resolve import resolve_model
from tests.helpers.exports import fresh_run, random_constants, request_of, saved_tiny, write_export
from tests.helpers.tiny_models import TINY, tiny_model

PROMPTS = Prompts(torch.randint(3, 96, (2, 10), generator=torch.Generator().manual_seed(0)), 5, 4)


QWEN2 = {key: value for key, value in TINY.items() if key != "head_dim"}


GEMMA = {**TINY, "sliding_window": 4, "query_pre_attn_scalar": 8, "tie_word_embeddings": True}


def all_heads(model):
    """Request for a circuit in which MLP neurons alone are closed."""
    drawn, shapes = request_of(model).masks["mlp_neuron"], model.shapes
    opened = torch.ones(len(shapes), shapes[0].heads, dtype=torch.bool)
    return request_of(model, ZERO, complete_masks({"head": opened, "mlp_neuron": drawn}, shapes))


def field(reader: GGUFReader, name: str):
    return reader.fields[name].contents()


def test_llama_and_mistral_are_read_back_in_a_fresh_process(tmp_path):
    torch.manual_seed(0)
    three = request_of(saved_tiny("llama", {**TINY, "num_key_value_heads": 4}, tmp_path / "wide"))
    masks = {name: mask.clone() for name, mask in three.masks.items()}
    masks["attention_neuron"][:] = torch.tensor([True] * 24 + [False] * 8)
    tiny_model("llama", {**TINY, "tie_word_embeddings": True}).model.to(torch.bfloat16).save_pretrained(
        tmp_path / "bf16"
    )
    requests = {
        "llama": request_of(saved_tiny("llama", TINY, tmp_path / "base")),
        "three": request_of(three.model, ZERO, masks),
        "mistral": request_of(saved_tiny("mistral", {**TINY, "sliding_window": None}, tmp_path / "mistral-base")),
        "bf16": request_of(resolve_model(ModelConfig(path=str(tmp_path / "bf16"), dtype="bfloat16"))),
        "qwen3": request_of(saved_tiny("qwen3", TINY, tmp_path / "qwen3-base")),
        "gemma2": request_of(saved_tiny("gemma2", GEMMA, tmp_path / "gemma2-base")),
        "gemma3": request_of(saved_tiny("gemma3_text", GEMMA, tmp_path / "gemma3-base")),
        "qwen2": all_heads(saved_tiny("qwen2", QWEN2, tmp_path / "qwen2-base")),
    }
    requests |= {
        f"{name}-mean": replace(requests[name], ablation=random_constants(requests[name].model.shapes))
        for name in ("llama", "mistral")
    }
    runs = []
    for name, request in requests.items():
        write_export("gguf", request, tmp_path / name / "out")
        runs.append(fresh_run("gguf", tmp_path / name / "out", PROMPTS))
    for (name, request), result in zip(requests.items(), run_fresh(runs), strict=True):
        config = request.model.config.model_copy(update={"dtype": "float32"})
        compared = compare_outputs(run_masked(load_frozen(config), request, PROMPTS), result.outputs)
        assert compared.is_equal and compared.same_tokens == compared.tokens, (name, compared)
    reader = GGUFReader(tmp_path / "three/out/model.gguf")
    assert field(reader, "general.architecture") == "llama"
    assert field(reader, "llama.attention.head_count") == 4, "three heads divide no hidden size of 32"
    assert field(reader, "llama.attention.key_length") == 8 and field(reader, "tokenizer.ggml.model") == "no_vocab"
    reader = GGUFReader(tmp_path / "qwen3/out/model.gguf")
    assert field(reader, "general.architecture") == "qwen3" and (tmp_path / "qwen3/out/config.json").exists()
    assert "blk.0.attn_q_norm.weight" in {tensor.name for tensor in reader.tensors}
    reader = GGUFReader(tmp_path / "gemma2/out/model.gguf")
    stored = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    base = load_frozen(requests["gemma2"].model.config).model.state_dict()
    torch.testing.assert_close(
        stored["blk.1.ffn_norm.weight"], base["model.layers.1.pre_feedforward_layernorm.weight"] + 1
    )
    assert field(reader, "gemma2.attention.sliding_window") == 4 and "output.weight" not in stored
    assert (
        field(reader, "gemma2.attn_logit_softcapping") == 50 and field(reader, "gemma2.final_logit_softcapping") == 30
    )
    reader = GGUFReader(tmp_path / "gemma3/out/model.gguf")
    assert (field(reader, "gemma3.rope.freq_base"), field(reader, "gemma3.rope.freq_base_swa")) == (1e6, 1e4)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(tmp_path / "bf16/out/model.gguf").tensors}
    assert kinds["blk.0.attn_q.weight"] == "BF16" and kinds["blk.0.attn_norm.weight"] == "F32"
    assert "output.weight" not in kinds, "tied embeddings are stored once"
    for name in ("llama-mean", "mistral-mean"):
        names = {tensor.name for tensor in GGUFReader(tmp_path / name / "out/model.gguf").tensors}
        assert {"blk.1.attn_output.bias", "blk.1.ffn_down.bias"} <= names and (
            tmp_path / name / "out/config.json"
        ).exists()


def test_the_tokenizer_of_the_model_goes_along(shared, tmp_path):
    model = resolve_model(ModelConfig(path=str(shared / "models/stories260k")))
    opened = {"head": torch.ones(5, 8, dtype=torch.bool), "mlp_neuron": torch.ones(5, 172, dtype=torch.bool)}
    masks = complete_masks(opened, model.shapes)
    write_export("gguf", request_of(model, ZERO, masks), tmp_path / "out")
    reader = GGUFReader(tmp_path / "out/model.gguf")
    known = json.loads((shared / "models/stories260k/tokenizer.json").read_text())["model"]
    tokens, scores = field(reader, "tokenizer.ggml.tokens"), field(reader, "tokenizer.ggml.scores")
    assert tokens == sorted(known["vocab"], key=known["vocab"].get) and field(reader, "tokenizer.ggml.model") == "llama"
    merged = ["".join(pair) for pair in known["merges"]]
    assert sorted(merged, key=lambda token: -scores[tokens.index(token)]) == merged, (
        "what is merged first scores highest"
    )
    types = field(reader, "tokenizer.ggml.token_type")
    assert types[:4] == [2, 3, 3, 6] and field(reader, "tokenizer.ggml.add_bos_token") is True


def test_added_tokens_that_are_not_special_are_of_a_type_that_is_found_before_merges(shared, tmp_path):
    content = json.loads((shared / "models/stories260k/tokenizer.json").read_text())
    name, size = "<tool>", len(content["model"]["vocab"])
    flags = dict.fromkeys(("special", "single_word", "lstrip", "rstrip", "normalized"), False)
    plain = {"id": size, "content": name, **flags}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "added_tokens": [*content["added_tokens"], plain]}))
    found = read_tokenizer(PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")), size + 1)
    assert (found.tokens[size], found.types[size], found.types[:3]) == (name, 4, [2, 3, 3])


def test_the_tokenizer_is_as_transformers_opens_it(shared, tmp_path):
    """The class of Llama has a pre-tokenizer of its own, that of GPT-2 no normalizer, whatever tokenizer.json says."""
    stories = shared / "models/stories260k"
    plain = read_tokenizer(AutoTokenizer.from_pretrained(stories), 512)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    opened = {}
    lower = json.loads((shared / "data/tokenizers/gpt2/tokenizer.json").read_text()) | {
        "normalizer": {"type": "Lowercase"}
    }
    for kind, content, tokens in (
        ("LlamaTokenizer", json.loads((stories / "tokenizer.json").read_text()), names),
        ("GPT2Tokenizer", lower, {}),
        ("TokenizersBackend", lower, {}),
    ):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps(content))
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": kind, **tokens}))
        opened[kind] = read_tokenizer(AutoTokenizer.from_pretrained(folder), 512 if tokens else 50257)
    assert opened["LlamaTokenizer"] == plain
    assert opened["GPT2Tokenizer"].pre == "gpt-2"
    assert opened["TokenizersBackend"] == "its normalizer is Lowercase, and llama.cpp has none"


def test_what_the_file_cannot_say_is_refused(tmp_path):
    windowed = {**TINY, "sliding_window": 4}
    with pytest.raises(UserError, match="attention within a window of 4 tokens is not written here"):
        write_export("gguf", request_of(saved_tiny("mistral", windowed, tmp_path / "windowed")), tmp_path / "w")
    with pytest.raises(UserError, match="olmo2 is none of llama, mistral, qwen2, qwen3, gemma2, gemma3_text"):
        write_export("gguf", request_of(saved_tiny("olmo2", TINY, tmp_path / "olmo")), tmp_path / "y")
    qwen = request_of(saved_tiny("qwen3", TINY, tmp_path / "qwen"))
    with pytest.raises(
        UserError, match="constants of mean ablation need biases, which llama.cpp does not add for qwen3"
    ):
        write_export("gguf", replace(qwen, ablation=random_constants(qwen.model.shapes)), tmp_path / "q")
    with pytest.raises(UserError, match="llama.cpp reads qwen2 with all 4 heads alone"):
        write_export("gguf", request_of(saved_tiny("qwen2", QWEN2, tmp_path / "qwen2")), tmp_path / "r")
    scaled = {**TINY, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}
    with pytest.raises(UserError, match="rotary scaling linear is not written here"):
        write_export("gguf", request_of(saved_tiny("llama", scaled, tmp_path / "scaled")), tmp_path / "z")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        (
            "gemma2",
            {"query_pre_attn_scalar": 16},
            "llama.cpp scales scores by 8 and not by 16 for a gemma2 of 3 layers",
        ),
        (
            "gemma3_text",
            {"layer_types": ["full_attention"] * 3},
            "llama.cpp takes every 6th layer as one without a window",
        ),
        ("gemma2", {"tie_word_embeddings": False}, "llama.cpp reads embeddings and vocabulary projection as one"),
        (
            "gemma3_text",
            {"attention_bias": True},
            "llama.cpp has no biases of queries, keys and values for a gemma3_text",
        ),
    ],
)
def test_what_llama_cpp_derives_by_itself_has_to_be_so(tmp_path, name, settings, message):
    with pytest.raises(UserError, match=message):
        write_export("gguf", request_of(saved_tiny(name, GEMMA | settings, tmp_path / "base")), tmp_path / "out")
