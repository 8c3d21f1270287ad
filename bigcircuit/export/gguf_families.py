"""Model types that can be written as GGUF, and what llama.cpp derives by itself, so that a file cannot say it.

Read from llama.cpp's source: its classes for these types take the scale of attention, the order of windows and the activation as
given, and know no tensors but those of the table.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from bigcircuit.errors import UserError


class GgufFamily(NamedTuple):
    """How llama.cpp computes a model type."""

    architecture: str
    """Its name in the file."""
    written_as: str
    """Model type of the class of transformers that reads the file."""
    reordered: bool = False
    """Whether rows of queries and keys are reordered."""
    adds_biases: bool = False
    """Whether it adds biases to all projections."""
    takes_width: bool = True
    """Whether heads may be of another width together than the hidden size."""
    read_by_itself: bool = False
    """Whether transformers reads all settings from the file, and needs no config beside it."""
    norms: Mapping[str, str] = {}
    """Module of a decoder layer -> its name in GGUF, where it differs from those of most types."""
    norm_offset: float = 0.0
    """What the file adds to the weights of norms: the class of transformers adds it when it runs."""
    period: int = 0
    """Layers from one without a window to the next; 0 where no layer has one."""
    scaled_by_width: int = 0
    """Number of layers at which scores are scaled by hidden size / heads in place of the width of a head: the 27B models."""


_LLAMA = GgufFamily(architecture="llama", written_as="llama", reordered=True, adds_biases=True, read_by_itself=True)
_GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
GGUF_FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": GgufFamily(architecture="qwen2", written_as="qwen2", takes_width=False, read_by_itself=True),
    "qwen3": GgufFamily(architecture="qwen3", written_as="qwen3"),
    "gemma2": GgufFamily(
        architecture="gemma2", written_as="gemma2", norms=_GEMMA_NORMS, norm_offset=1.0, period=2, scaled_by_width=46
    ),
    "gemma3_text": GgufFamily(
        architecture="gemma3",
        written_as="gemma3_text",
        norms=_GEMMA_NORMS,
        norm_offset=1.0,
        period=6,
        scaled_by_width=62,
    ),
}
"""Model type -> how it is written."""


def check_settings(family: GgufFamily, config: Any) -> None:
    """Check what the file cannot say, of the config that is written. Raises UserError with the reason."""
    if not family.period:
        return
    heads, hidden, layers = config.num_attention_heads, config.hidden_size, config.num_hidden_layers
    scale = hidden // heads if layers == family.scaled_by_width else config.head_dim
    last = family.period - 1
    pattern = [("sliding" if index % family.period < last else "full") + "_attention" for index in range(layers)]
    problems = {
        f"scales scores by {scale} and not by {config.query_pre_attn_scalar}": config.query_pre_attn_scalar != scale,
        f"takes every {family.period}th layer as one without a window": list(config.layer_types) != pattern,
        "reads embeddings and vocabulary projection as one": not config.tie_word_embeddings,
        "has no biases of queries, keys and values": config.attention_bias,
        "computes GELU by tanh": config.hidden_activation != "gelu_pytorch_tanh",
        "caps no attention scores of a Gemma 3": family.architecture == "gemma3"
        and config.attn_logit_softcapping is not None,
        "looks at no later tokens": getattr(config, "use_bidirectional_attention", None),
    }
    for what, differs in problems.items():
        if differs:
            raise UserError(
                f"--format gguf: llama.cpp {what} for a {config.model_type} of {layers} layers, and this cut is another; use "
                "--format uniform"
            )


def rope_of(config: Any, kind: str = "full_attention") -> dict[str, Any]:
    """Rotary settings of the layers of a kind."""
    rope: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    return rope.get(kind, rope)


def add_family_settings(writer: Any, family: GgufFamily, config: Any) -> None:
    """Write windows and caps of scores."""
    if not family.period:
        return
    writer.add_sliding_window(config.sliding_window)
    if config.final_logit_softcapping is not None:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if family.architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping or 0.0)
    else:
        writer.add_sliding_window_pattern(family.period)
        writer.add_rope_freq_base_swa(rope_of(config, "sliding_attention")["rope_theta"])
