"""Opening checkpoints: local folders, fine-tuned weights, adapters, and what cannot be opened."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.schema import ModelConfig
from bigcircuit.data.collate import collate
from bigcircuit.errors import UserError
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import discretise
from bigcircuit.model.fingerprint import fingerprint
from bigcircuit.model.load import EMBEDDED as PATH
from bigcircuit.model.load import attention_of, load_config, load_frozen, load_tokenizer, skeleton
from bigcircuit.model.parameter_count import count_parameters
from bigcircuit.model.resolve import resolve_model
from tests.helpers.pair_files import write_pairs
from tests.helpers.short_runs import run
from tests.helpers.tiny_models import TINY_CONFIGS, constant_masks, tiny_examples, tiny_model


@pytest.fixture
def adapter(tmp_path):
    """A LoRA adapter on both sites and on what feeds them, with weights that do something."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(PATH)
    names = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(r=4, target_modules=names, init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    return str(tmp_path / "adapter"), model.eval()


def test_open_gates_on_an_adapted_model_are_the_adapted_model(adapter):
    path, expected = adapter
    frozen = load_frozen(ModelConfig(adapter=path))
    batch = collate(tiny_examples(), full=True)
    with torch.no_grad():
        logits = expected(
            input_ids=batch.clean, attention_mask=batch.attention_mask, position_ids=batch.position_ids, use_cache=False
        ).logits[batch.score_row, batch.score_position]
        plain = load_frozen(ModelConfig()).model(input_ids=batch.clean).logits
        with Streams(frozen, INTERCHANGE) as streams:
            assert torch.equal(streams.masked(batch, constant_masks(frozen, 1.0), 1)[0], logits)
    assert not torch.allclose(plain[batch.score_row, batch.score_position], logits, atol=1e-2)
    assert not any(parameter.requires_grad for parameter in frozen.model.parameters())


def test_parameters_of_an_adapter_are_counted_once(adapter):
    frozen = load_frozen(ModelConfig(adapter=adapter[0]))
    everything = discretise({"block": torch.ones(len(frozen.shapes), 1)}, frozen.shapes, {})
    kept = count_parameters(frozen, everything)
    assert kept.kept == kept.total


def test_a_run_with_an_adapter(adapter, tmp_path):
    folder = run(tmp_path / "run", model__adapter=adapter[0], train__steps=2)
    assert json.loads(folder.summary.read_text())["members"][0]["kept"]["total"] == 200


def test_fine_tuned_weights_in_a_local_folder(tmp_path):
    folder = tmp_path / "tuned"
    shutil.copytree(PATH, folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1.5
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    tuned = load_frozen(ModelConfig(path=str(folder)))
    assert torch.equal(tuned.model.model.norm.weight, weights["model.norm.weight"])
    before, after = fingerprint(ModelConfig()), fingerprint(ModelConfig(path=str(folder)))
    assert before["weights"] != after["weights"]
    assert before["config"] == after["config"]


def test_skeleton_has_the_shapes_and_no_data():
    meta = skeleton(ModelConfig())
    assert meta.shapes == load_frozen(ModelConfig()).shapes
    assert all(parameter.is_meta for parameter in meta.model.parameters())


def test_model_without_a_tokenizer(shared):
    assert load_tokenizer(ModelConfig(path=str(shared / "models/induction_2L1H"))) is None
    assert load_tokenizer(ModelConfig()).bos_token == "<s>"


def broken(tmp_path, change):
    folder = tmp_path / "model"
    shutil.copytree(PATH, folder)
    change(folder)
    return ModelConfig(path=str(folder))


def test_no_weights_and_pickled_weights_are_refused(tmp_path):
    def pickle_only(folder):
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()

    with pytest.raises(UserError, match=r"model\.path .*no file named model\.safetensors"):
        load_frozen(broken(tmp_path, pickle_only))


def test_damaged_weights_are_refused(tmp_path):
    config = broken(tmp_path, lambda folder: (folder / "model.safetensors").write_bytes(b"1234567890"))
    with pytest.raises(UserError, match=r"model\.path .*model"):
        load_frozen(config)


def test_folder_without_config(tmp_path):
    config = broken(tmp_path, lambda folder: (folder / "config.json").unlink())
    with pytest.raises(UserError, match=r"model\.path .*model"):
        load_config(config)


def test_architecture_that_is_not_listed(tmp_path):
    config = broken(tmp_path, lambda folder: (folder / "config.json").write_text('{"model_type": "jetmoe"}'))
    with pytest.raises(UserError, match="it is a mixture of experts whose attention heads are experts"):
        load_config(config)


def test_hub_model_without_network():
    problem = "there is no such folder here, and config.json of a hub model of this name cannot be opened"
    for path in ("nobody/nothing", "nothing"):
        with pytest.raises(
            UserError, match=f"model.path {path}: {problem} .*; name a folder with config.json as ./NAME or"
        ):
            load_config(ModelConfig(path=path))


def test_attention_that_a_model_does_not_have_is_eager_and_is_refused_if_it_is_asked_for(tmp_path):
    tiny_model("gemma2", TINY_CONFIGS["gemma2"][0]).model.save_pretrained(tmp_path)
    path = str(tmp_path)
    for asked, found in (("auto", "eager"), ("eager", "eager")):
        resolved = resolve_model(ModelConfig(path=path, attention=asked))
        assert resolved.config.attention == found == attention_of(resolved.skeleton)
        assert attention_of(resolved.load(torch.device("cpu"))) == attention_of(load_frozen(resolved.config)) == found
    with pytest.raises(UserError, match="model.attention sdpa: leaves out the attn_logit_softcapping"):
        resolve_model(ModelConfig(path=path, attention="sdpa"))


@pytest.mark.parametrize(("asked", "found"), [("auto", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")])
def test_attention_of_a_model_with_sdpa(asked, found):
    resolved = resolve_model(ModelConfig(attention=asked))
    assert resolved.config.attention == found == attention_of(resolved.skeleton)
    assert attention_of(resolved.load(torch.device("cpu"))) == found
    changed = resolved.changed(ModelConfig(attention=asked, dtype="bfloat16"))
    assert (
        changed.config.attention == found and changed.changed(ModelConfig(attention=asked, dtype="bfloat16")) is changed
    )


def test_a_run_on_a_model_without_sdpa_says_which_attention_it_used(tmp_path):
    tiny_model("gpt_neo", TINY_CONFIGS["gpt_neo"][0]).model.save_pretrained(tmp_path / "model")
    pairs = write_pairs(
        tmp_path / "pairs.jsonl",
        (
            {"clean": [5, 6, 7 + i], "corrupted": [5, 8, 7 + i], "answers": [[9]], "wrong_answers": [[10]]}
            for i in range(12)
        ),
    )
    folder = run(tmp_path / "run", model__path=str(tmp_path / "model"), task__name="pairs", train__steps=1,
                 task__path=pairs, target__total=50)  # fmt: skip
    assert Circuit.load(folder.circuit("0", 1)).metadata["attention"] == "eager"
