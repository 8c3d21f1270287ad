"""Chat templates in the style of known model families, and a tokenizer and a tiny model with one of them."""

from pathlib import Path

from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bigcircuit.model.weight_files import EMBEDDED

CHATML = """{%- for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% if enable_thinking is defined and not enable_thinking %}<think>

</think>

{% endif -%}
{%- endif -%}"""
"""Of the Qwen family: a switch for thinking, no BOS."""
HEADERS = """{{- bos_token -}}
{%- if messages[0].role == 'system' -%}
{%- set system = messages[0].content | trim -%}
{%- set messages = messages[1:] -%}
{%- endif -%}
<|im_start|>system
Today is {{ strftime_now('%d %b %Y') }}. {{ system }}<|im_end|>
{% for message in messages -%}
<|im_start|>{{ message.role }}
{{ message.content | trim }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""
"""Of the Llama 3 family: BOS, the date of today, messages without outer spaces."""
TURNS = """{{- bos_token -}}
{%- if messages[0].role == 'system' -%}{{- raise_exception('System role not supported') -}}{%- endif -%}
{%- for message in messages -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
{%- endif -%}
<|im_start|>{{ 'model' if message.role == 'assistant' else message.role }}
{{ message.content | trim }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>model
{% endif -%}"""
"""Of the Gemma family: roles that alternate, no system message."""
INSTRUCTIONS = """{{- bos_token -}}
{%- for message in messages -%}
{%- if message.role == 'user' -%}[INST] {{ message.content }} [/INST]{%- elif message.role == 'assistant' -%}
{{- ' ' + message.content + eos_token -}}
{%- endif -%}
{%- endfor -%}"""
"""Of the Mistral family: no generation prompt, and system messages are left out without a word."""
TEMPLATES = {"chatml": CHATML, "headers": HEADERS, "turns": TURNS, "instructions": INSTRUCTIONS}


def chat_tokenizer(template: str | None = CHATML):
    """The tokenizer of the embedded model with two more special tokens and a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def save_chat_model(folder: Path, template: str | None = CHATML) -> Path:
    """Save a tiny random Llama with this tokenizer."""
    tokenizer = chat_tokenizer(template)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
