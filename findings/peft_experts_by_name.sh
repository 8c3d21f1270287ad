#!/usr/bin/env bash
# The same target_modules train the experts of a mixture with LoRA in Qwen3-MoE, and leave them out in Mixtral, or with any other method.
#
# Guess: "down_proj" finds the experts' down projections, in every mixture that has them under this name and with every method of
# PEFT, as it did while experts were Linear modules; a method that cannot reach them says so. And "all-linear" takes the linear
# layers, not the router's bare parameter.
# What happens (peft 0.21.2, transformers 5.24.0): transformers holds experts as two stacked parameters without Linear modules. For
# LoRA peft translates the name that the type had in transformers 4 (down_proj in Qwen3-MoE and OLMoE, w2 in Mixtral), and no other;
# gpt-oss is left out. (IA)3, VeRA, LoHa and OFT match k_proj and v_proj alone, also by peft's own default for Mixtral (k_proj,
# v_proj, w2). No error and no warning, as long as one other name matches: attention is trained and nothing else. "all-linear" takes
# experts AND router in three of the four types, whose choice of experts then differs from the base model's, and neither in gpt-oss.
# The translation is written into the LoraConfig that was given: the same object, used for a Mixtral after a Qwen3-MoE, reaches
# experts.
# Consequence: count the trainable parameters by layer part before a run; an adapter of today is not that of transformers 4 with the
# same config.
#
# Output seen: parts of a layer with trainable parameters for target_modules k_proj, v_proj, down_proj
#   peft 0.21.2, transformers 5.24.0
#   qwen3_moe: LoRA attention experts, (IA)3 attention, VeRA attention, LoHa attention, OFT attention; LoRA all-linear attention experts router
#   olmoe: LoRA attention experts, (IA)3 attention, VeRA attention, LoHa attention, OFT attention; LoRA all-linear attention experts router
#   mixtral: LoRA attention, (IA)3 attention, VeRA attention, LoHa attention, OFT attention; LoRA all-linear attention experts router
#   gpt_oss: LoRA attention, (IA)3 attention, VeRA attention, LoHa attention, OFT attention; LoRA all-linear attention
#   mixtral: LoRA on w2 experts; (IA)3 by default attention
#   mixtral with the LoraConfig object that was used for qwen3_moe before: attention experts
#   warnings: 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0 transformers==5.24.0 peft==0.21.2 accelerate==1.15.0 numpy==2.4.6
cat > parts.py <<'PYTHON'
import warnings
from functools import partial
from importlib.metadata import version

from peft import IA3Config, LoHaConfig, LoraConfig, OFTConfig, VeraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

print(f"peft {version('peft')}, transformers {version('transformers')}")
NAMES = ["k_proj", "v_proj", "down_proj"]
METHODS = {
    "LoRA": partial(LoraConfig, target_modules=NAMES),
    "(IA)3": partial(IA3Config, target_modules=NAMES, feedforward_modules=["down_proj"]),
    "VeRA": partial(VeraConfig, target_modules=NAMES),
    "LoHa": partial(LoHaConfig, target_modules=NAMES),
    "OFT": partial(OFTConfig, target_modules=NAMES, oft_block_size=4),
    "LoRA all-linear": partial(LoraConfig, target_modules="all-linear"),
}
PARTS = {"attention": ".self_attn.", "experts": ".experts.", "router": (".mlp.gate.", ".router.")}


def trained(kind, config):
    """Parts of the layers that have trainable parameters."""
    model = get_peft_model(AutoModelForCausalLM.from_config(AutoConfig.for_model(
        kind, vocab_size=64, hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_experts=4, num_local_experts=4, num_experts_per_tok=2,
    )), config)
    keys = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    names = {part: (name,) if isinstance(name, str) else name for part, name in PARTS.items()}
    return " ".join(part for part, inside in names.items() if any(one in key for key in keys for one in inside))


about = []
for kind in ("qwen3_moe", "olmoe", "mixtral", "gpt_oss"):
    found = {}
    for method, config in METHODS.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found[method] = trained(kind, config())
        about += [one for one in caught if any(word in str(one.message) for word in ("target_modules", "down_proj", "expert"))]
    everything = found.pop("LoRA all-linear")
    print(f"{kind}: " + ", ".join(f"{name} {parts}" for name, parts in found.items()) + f"; LoRA all-linear {everything}")
    translated = kind in ("qwen3_moe", "olmoe")
    assert found.pop("LoRA") == ("attention experts" if translated else "attention"), kind
    assert set(found.values()) == {"attention"}, kind
    assert everything == ("attention" if kind == "gpt_oss" else "attention experts router"), kind
second = [trained("mixtral", LoraConfig(target_modules=["w2"])), trained("mixtral", IA3Config())]
print(f"mixtral: LoRA on w2 {second[0]}; (IA)3 by default {second[1]}")
assert second == ["experts", "attention"]
reused = LoraConfig(target_modules=NAMES)
second = [trained(kind, reused) for kind in ("qwen3_moe", "mixtral")][1]
print(f"mixtral with the LoraConfig object that was used for qwen3_moe before: {second}")
assert second == "attention experts"
print("warnings:", len(about))
assert not about
PYTHON
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" parts.py 2> errors || { cat errors; exit 1; }
