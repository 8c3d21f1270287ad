#!/usr/bin/env bash
# TransformerBridge rebuilds the model object that it is given: names, attention, weights; throwing the bridge away brings nothing back.
#
# Guess: boot_transformers(hf_model=model) wraps the model, as nnsight does, and the caller's object goes on as before; what
# enable_compatibility_mode folds and centres are weights of the bridge.
# What happens (transformer-lens 4.3.0, transformers 5.24.0): the modules of the caller's model are replaced. None of its parameter
# names is left (68 keys in its state_dict instead of 21), its attention is eager instead of sdpa, and enable_compatibility_mode()
# moves its own logits, by a constant a token, so log-probabilities stay. After `del bridge` all of that is still so; save_pretrained and
# load_state_dict of the plain model's weights raise RuntimeError.
# Consequence: give it a deepcopy, or a model that is loaded for it alone: raw logits, logit lenses and weight hashes of the "same" model
# differ before and after, and adapters, ZeRO and export, which go by names, find nothing.
#
# Output seen:
#   transformer-lens 4.3.0, transformers 5.24.0
#   names kept 0 of 21, keys now 68, attention sdpa -> eager
#   compatibility mode, then del bridge: logits of the model moved 0.125, log-probabilities 0.000
#   save_pretrained: RuntimeError, load_state_dict: RuntimeError
#   with a deepcopy: names kept 21 of 21, logits moved 0.000
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformer-lens==4.3.0 transformers==5.24.0 torch==2.13.0
cat > rebuilt.py <<'PYTHON'
import copy
import gc
from importlib.metadata import version

import torch
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

print(", ".join(f"{name} {version(name)}" for name in ("transformer-lens", "transformers")))
torch.manual_seed(0)
words = {f"w{number}": number for number in range(60)} | {"<s>": 60, "</s>": 61, "<pad>": 62, "<unk>": 63}
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
)).eval()
with torch.no_grad():
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
model.save_pretrained("model")
PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
    bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
).save_pretrained("model")
tokenizer = PreTrainedTokenizerFast.from_pretrained("model")
tokens, names, attention = torch.arange(3, 11).view(1, 8), set(model.state_dict()), model.config._attn_implementation


@torch.no_grad()
def logits():
    return model(tokens).logits


def boot(given):
    TransformerBridge.boot_transformers("model", hf_model=given, tokenizer=tokenizer, device="cpu").enable_compatibility_mode()
    gc.collect()  # nothing holds the bridge any more


def kept():
    return f"names kept {len(names & set(model.state_dict()))} of {len(names)}"


def failure(function, *args):
    try:
        function(*args)
    except Exception as error:
        return type(error).__name__


plain = logits()
boot(copy.deepcopy(model))
beside = f"with a deepcopy: {kept()}, logits moved {(logits() - plain).abs().max():.3f}"
boot(model)
print(f"{kept()}, keys now {len(model.state_dict())}, attention {attention} -> {model.config._attn_implementation}")
moved = (logits() - plain).abs().max()
shares = (logits().log_softmax(-1) - plain.log_softmax(-1)).abs().max()
print(f"compatibility mode, then del bridge: logits of the model moved {moved:.3f}, log-probabilities {shares:.3f}")
weights = LlamaForCausalLM.from_pretrained("model").state_dict()
print(f"save_pretrained: {failure(model.save_pretrained, 'again')}, load_state_dict: {failure(model.load_state_dict, weights)}")
print(beside)
PYTHON
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" rebuilt.py > output 2> errors || { cat errors; exit 1; }
cat output
diff output - <<'SEEN'
transformer-lens 4.3.0, transformers 5.24.0
names kept 0 of 21, keys now 68, attention sdpa -> eager
compatibility mode, then del bridge: logits of the model moved 0.125, log-probabilities 0.000
save_pretrained: RuntimeError, load_state_dict: RuntimeError
with a deepcopy: names kept 21 of 21, logits moved 0.000
SEEN
