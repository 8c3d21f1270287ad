#!/usr/bin/env bash
# lm-evaluation-harness scores another model than transformers loads, where a folder holds both matrices of tied embeddings.
#
# Guess: HFLM(pretrained=FOLDER) loads the model by from_pretrained, so its log-likelihoods are those of that model; and where config.json
# says tie_word_embeddings, the weights are tied whoever loads them.
# What happens (transformers 5.24.0, lm-eval 0.4.13): from_pretrained does NOT tie matrices that are both in the file and
# differ, whatever the config says, with a warning that reads as if all were well. lm-eval then calls tie_weights(), which goes by the
# config, and puts the input embeddings in the place of the trained head; a model OBJECT that is passed to it is changed for good.
# resize_token_embeddings does the same, even to the same size. Such folders come about when a head of its own is put on a tied model,
# or one of the two matrices is edited, and save_pretrained leaves tie_word_embeddings true in config.json.
# Consequence: set config.tie_word_embeddings = False before such a model is saved or evaluated; compare lm-eval with a pass of your own.
#
# Output seen: log-likelihood of the fourth token of a prompt
#   transformers 5.24.0, lm-eval 0.4.13
#   saved: tie_word_embeddings True, both matrices in the file: True
#   as loaded: -13.91, by lm-eval: -4.17, by the same object after lm-eval: -4.17
#   as loaded with tie_word_embeddings False: -13.91, by lm-eval: -13.91
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 lm-eval==0.4.13 accelerate==1.15.0 numpy==2.4.6
cat > compare.py <<'PYTHON'
import json
from importlib.metadata import version

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

print(", ".join(f"{name} {version(name)}" for name in ("transformers", "lm-eval")))
torch.manual_seed(0)
words = {f"w{number}": number for number in range(60)} | {"<s>": 60, "</s>": 61, "<pad>": 62, "<unk>": 63}
backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>")
model = AutoModelForCausalLM.from_config(AutoConfig.for_model(
    "llama", vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, tie_word_embeddings=True, bos_token_id=60, eos_token_id=61,
))
model.lm_head.weight = torch.nn.Parameter(torch.randn(64, 32))  # a head of its own
model.save_pretrained("model")
tokenizer.save_pretrained("model")
tied = json.load(open("model/config.json"))["tie_word_embeddings"]
with safe_open("model/model.safetensors", "pt") as file:
    both = {"lm_head.weight", "model.embed_tokens.weight"} <= set(file.keys())
print(f"saved: tie_word_embeddings {tied}, both matrices in the file: {both}")
assert tied and both
request = Instance(request_type="loglikelihood", doc={}, arguments=("w1 w2 w3", " w4"), idx=0)


def own(model):
    with torch.no_grad():
        return model(torch.tensor([[1, 2, 3]])).logits[0, -1].log_softmax(-1)[4].item()


def harness(given):
    lm = HFLM(pretrained=given, tokenizer=tokenizer, device="cpu", dtype="float32", batch_size=1)
    return lm.loglikelihood([request], disable_tqdm=True)[0][0]


loaded = AutoModelForCausalLM.from_pretrained("model").eval()
right, by_folder, by_object, after = own(loaded), harness("model"), harness(loaded), own(loaded)
print(f"as loaded: {right:.2f}, by lm-eval: {by_folder:.2f}, by the same object after lm-eval: {after:.2f}")
settings = json.load(open("model/config.json")) | {"tie_word_embeddings": False}
json.dump(settings, open("model/config.json", "w"))
untied, by_harness = own(AutoModelForCausalLM.from_pretrained("model").eval()), harness("model")
print(f"as loaded with tie_word_embeddings False: {untied:.2f}, by lm-eval: {by_harness:.2f}")
assert abs(right - untied) < 1e-4 and abs(untied - by_harness) < 1e-4
assert abs(right - by_folder) > 1 and abs(by_folder - by_object) < 1e-4 and abs(by_folder - after) < 1e-4
PYTHON
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" compare.py 2> errors || { cat errors; exit 1; }
