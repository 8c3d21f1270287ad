"""Compact models: known to the Auto classes after `import bigcircuit`, which itself loads no library."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import bigcircuit
from bigcircuit.errors import UserError
from tests.helpers.exports import request_of, saved_tiny, write_export
from tests.helpers.tiny_models import TINY


@pytest.fixture(scope="module")
def compact(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compact")
    write_export("compact", request_of(saved_tiny("llama", TINY, folder / "base")), folder / "out")
    return folder / "out"


OPENED = "print(*(type(auto.from_pretrained({folder!r})).__name__ for auto in (AutoModelForCausalLM, AutoConfig)))"


@pytest.mark.parametrize(
    "first", ["import bigcircuit; from transformers import AutoConfig, AutoModelForCausalLM",
              "from transformers import AutoConfig, AutoModelForCausalLM; import bigcircuit"]
)  # fmt: skip
def test_auto_classes_open_a_compact_model_in_either_order_of_imports(compact, first):
    code = f"{first}; {OPENED.format(folder=str(compact))}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["CompactLlamaForCausalLM", "CompactLlamaConfig"]


def test_without_this_project_the_type_is_not_known(compact):
    code = f"from transformers import AutoConfig, AutoModelForCausalLM; {OPENED.format(folder=str(compact))}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode and "bigcircuit" in done.stderr, "an error, and never another model"


def test_a_compact_model_is_saved_and_opened_again_as_itself(compact, tmp_path):
    model = bigcircuit.load_exported(compact)
    model.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again/config.json").read_text())
    assert (config["model_type"], config["base_model_type"]) == ("bigcircuit", "llama")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")
    assert again.config.layer_sizes == model.config.layer_sizes
    prompt = torch.tensor([[5, 6, 7, 8]])
    assert torch.equal(model(prompt).logits, again(prompt).logits)


def test_left_padded_batches_give_the_text_of_single_prompts(compact):
    model = bigcircuit.load_exported(compact).eval()
    first, second = torch.tensor([[5, 6, 7, 8]]), torch.tensor([[9, 10]])
    batch = torch.tensor([[5, 6, 7, 8], [0, 0, 9, 10]])
    settings = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    together = model.generate(batch, attention_mask=(batch > 0).long(), **settings)[:, 4:]
    alone = [
        model.generate(one, attention_mask=torch.ones_like(one), **settings)[0, one.shape[1] :]
        for one in (first, second)
    ]
    assert torch.equal(together, torch.stack(alone))


def test_an_adapter_is_loaded_on_its_base(tmp_path):
    write_export("ia3", request_of(saved_tiny("llama", TINY, tmp_path / "base")), tmp_path / "out")
    model = bigcircuit.load_exported(tmp_path / "out")
    assert type(model).__name__ == "PeftModelForCausalLM"
    assert model(torch.tensor([[5, 6, 7]])).logits.isfinite().all()


def without(name, folder, target):
    """Copy a folder with a tensor less in its file."""
    shutil.copytree(folder, target)
    [file] = target.glob("*.safetensors")
    tensors = load_file(file)
    assert tensors.pop(name) is not None
    save_file(tensors, file, {"format": "pt"})
    return target


def test_weights_that_the_files_lack_are_not_drawn_at_random(compact, tmp_path):
    name = "model.layers.1.self_attn.o_proj.weight"
    with pytest.raises(UserError, match=f"its files have no {name} of the shape that its config asks for; export the"):
        bigcircuit.load_exported(without(name, compact, tmp_path / "compact"))
    write_export("ia3", request_of(saved_tiny("llama", TINY, tmp_path / "base")), tmp_path / "out")
    name = "base_model.model.model.layers.0.mlp.down_proj.ia3_l"
    with pytest.raises(UserError, match=f"its files have no {name} of the shape"):
        bigcircuit.load_exported(without(name, tmp_path / "out", tmp_path / "ia3"))


def test_weights_in_a_pickle_are_not_opened(compact, tmp_path):
    folder = shutil.copytree(compact, tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="pickled: cannot be loaded .*safetensors"):
        bigcircuit.load_exported(folder)
    write_export("ia3", request_of(saved_tiny("llama", TINY, tmp_path / "base")), tmp_path / "ia3")
    torch.save(load_file(tmp_path / "ia3/adapter_model.safetensors"), tmp_path / "ia3/adapter_model.bin")
    (tmp_path / "ia3/adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="ia3: cannot be loaded .*adapter_model.safetensors"):
        bigcircuit.load_exported(tmp_path / "ia3")


def test_damaged_folders_are_one_line(compact, tmp_path):
    shutil.copytree(compact, tmp_path / "cut")
    (tmp_path / "cut/model.safetensors").write_bytes((compact / "model.safetensors").read_bytes()[:-10])
    with pytest.raises(UserError, match=r"cut: cannot be loaded \(SafetensorError: .*; export the circuit again"):
        bigcircuit.load_exported(tmp_path / "cut")
    config = json.loads((compact / "config.json").read_text())
    (tmp_path / "cut/config.json").write_text(json.dumps({**config, "layer_sizes": [{"heads": "x"}]}))
    with pytest.raises(UserError, match="cut: cannot be loaded"):
        bigcircuit.load_exported(tmp_path / "cut")


def test_mistakes_are_one_line(compact, tmp_path):
    with pytest.raises(UserError, match="holds no exported model"):
        bigcircuit.load_exported(tmp_path)
    config = json.loads((compact / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"base_model_type": "llama99"}))
    with pytest.raises(UserError, match="base_model_type 'llama99' is not known to this version of transformers"):
        AutoConfig.from_pretrained(tmp_path)
