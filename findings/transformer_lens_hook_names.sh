#!/usr/bin/env bash
# In TransformerLens 4.3 a hook that is set by its old name is called with another name.
#
# Guess: `run_with_hooks(fwd_hooks=[("blocks.0.attn.hook_z", f)])` calls f with a hook whose `name` is "blocks.0.attn.hook_z", as in
# versions 1 to 3, so f can look up its mask, its cached activation or its layer by `hook.name`.
# What happens (transformer-lens 4.3.0, TransformerBridge): the old name is accepted as an alias and leads to the right activation, but
# `hook.name` is the bridge's own, "blocks.0.attn.o.hook_in". A dictionary that is keyed by the names that were given raises KeyError,
# and a test such as `"hook_z" in hook.name` is false for every hook, silently.
# Consequence: bind what a hook needs when it is made (functools.partial); take nothing from `hook.name`.
#
# Output seen:
#   transformer-lens 4.3.0 transformers 5.23.0
#   blocks.0.attn.hook_z: blocks.0.attn.o.hook_in
#   blocks.0.mlp.hook_post: blocks.0.mlp.out.hook_in
#   blocks.0.hook_resid_post: blocks.0.hook_out
#   hook_embed: embed.hook_out
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q transformer-lens==4.3.0 transformers==5.23.0 torch==2.13.0
cat > names.py <<'PYTHON'
from importlib.metadata import version

import torch
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
))
words = {f"w{number}": number for number in range(60)} | {"<s>": 60, "</s>": 61, "<pad>": 62, "<unk>": 63}
tokenizer = PreTrainedTokenizerFast(
    tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
    bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
)
model.save_pretrained("model")
tokenizer.save_pretrained("model")
tokenizer = PreTrainedTokenizerFast.from_pretrained("model")
bridge = TransformerBridge.boot_transformers("model", hf_model=model.eval(), tokenizer=tokenizer, device="cpu")
print("transformer-lens", version("transformer-lens"), "transformers", version("transformers"))
for given in ("blocks.0.attn.hook_z", "blocks.0.mlp.hook_post", "blocks.0.hook_resid_post", "hook_embed"):
    seen = []

    def note(value, hook):
        seen.append(hook.name)
        return value

    bridge.run_with_hooks(torch.arange(5).unsqueeze(0), fwd_hooks=[(given, note)])
    print(f"{given}: {' '.join(seen)}")
PYTHON
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" names.py > output 2> errors || { cat errors; exit 1; }
cat output
diff output - <<'SEEN'
transformer-lens 4.3.0 transformers 5.23.0
blocks.0.attn.hook_z: blocks.0.attn.o.hook_in
blocks.0.mlp.hook_post: blocks.0.mlp.out.hook_in
blocks.0.hook_resid_post: blocks.0.hook_out
hook_embed: embed.hook_out
SEEN
