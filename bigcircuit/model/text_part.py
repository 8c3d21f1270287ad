"""Open a multimodal checkpoint on its language model: text in, text out, without the weights of its other parts.

transformers builds the whole model, by the class that its Auto class chooses, of which the other parts are taken out before
weights are loaded. What is masked is the language model with the vocabulary projection, as a causal language model of its own.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import PreTrainedModel

from bigcircuit.errors import UserError

MULTIMODAL = tuple(
    "aya_vision cohere2_vision gemma3 idefics3 internvl llava llava_next mistral3 mllama qwen2_5_vl qwen2_vl qwen3_vl "
    "smolvlm".split()
)
"""Model types whose language part computes on texts, to the last bit, what the whole model computes; tests show it of each."""


def text_config(hf_config: Any) -> Any:
    """Return the config of the language model: of a multimodal checkpoint a part, else the config itself."""
    return hf_config.get_text_config(decoder=True)


def check_multimodal(hf_config: Any, subject: str) -> None:
    """Raise UserError for a multimodal model whose language part is not known to compute what the whole does."""
    text = text_config(hf_config)
    if hf_config is not text and hf_config.model_type not in MULTIMODAL:
        raise UserError(
            f"{subject}: model type {hf_config.model_type!r} holds a language model of type {text.model_type!r} among other "
            f"models, and is not one of those that are opened on that part ({', '.join(MULTIMODAL)}); save the language model alone"
        )


def model_class(hf_config: Any) -> Any:
    """Return what has `from_pretrained` and `from_config` for a checkpoint: an Auto class, or the class of the whole
    multimodal model with its other parts taken out."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    if text_config(hf_config) is hf_config:
        return AutoModelForCausalLM
    with torch.device("meta"):
        whole = type(AutoModelForImageTextToText.from_config(deepcopy(hf_config)))

    def build(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        whole.__init__(self, config, *args, **kwargs)
        _take_out_other_parts(self)

    def from_pretrained(cls: Any, *args: Any, trust_remote_code: bool = False, **kwargs: Any) -> Any:  # noqa: ARG001
        return super(text_only, cls).from_pretrained(*args, **kwargs)

    members = {
        "__init__": build,
        "__module__": whole.__module__,
        "from_config": classmethod(lambda cls, config, **kwargs: cls._from_config(config, **kwargs)),
        "from_pretrained": classmethod(from_pretrained),
    }
    text_only = type(whole.__name__, (whole,), members)
    return text_only


def other_parts(hf_config: Any) -> tuple[str, ...]:
    """Name the modules of a multimodal model that text does not pass, such as its vision tower; none of another model."""
    from transformers import AutoModelForImageTextToText

    if text_config(hf_config) is hf_config:
        return ()
    with torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(deepcopy(hf_config))
    return tuple(_take_out_other_parts(whole))


def language_part(model: Any) -> Any:
    """Return the language model of a multimodal model as a causal language model; another model is returned as it is.

    Both share their modules.
    """
    from transformers import AutoModelForCausalLM

    if text_config(model.config) is model.config:
        return model
    language, head = model.get_decoder(), model.get_output_embeddings()
    if crossing := _crossing(language):
        language.layers = nn.ModuleList(layer for index, layer in enumerate(language.layers) if index not in crossing)
        language.cross_attention_layers = []
    try:
        with torch.device("meta"):
            part = AutoModelForCausalLM.from_config(
                language.config, attn_implementation=language.config._attn_implementation
            )
    except ValueError:  # no class for the language model alone
        return _LanguagePart(language, head)
    if type(part.base_model) is not type(language):
        return _LanguagePart(language, head)
    setattr(part, part.base_model_prefix, language)
    part.set_output_embeddings(head)
    part.config = language.config
    return part.eval()


class _LanguagePart(PreTrainedModel):
    """Language model with a vocabulary projection and nothing behind it."""

    _supports_sdpa = True

    def __init__(self, language: Any, head: nn.Module) -> None:
        super().__init__(language.config)
        self.model, self.lm_head = language, head
        self.all_tied_weights_keys: dict[str, str] = {}
        self.eval()

    def get_output_embeddings(self) -> nn.Module:
        """Return the vocabulary projection."""
        return self.lm_head

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embeddings."""
        return self.model.get_input_embeddings()

    def forward(self, **inputs: Any) -> CausalLMOutputWithPast:
        """Compute logits, [rows, tokens, vocabulary], of the inputs of a causal language model."""
        return CausalLMOutputWithPast(logits=self.lm_head(self.model(**inputs).last_hidden_state))


def _take_out_other_parts(model: Any) -> list[str]:
    """Delete the modules with weights that are neither in the language model and the vocabulary projection nor around them.

    Returns their names.
    """
    language, taken = model.get_decoder(), []
    for index in _crossing(language):
        language.layers[index] = nn.Identity()  # the others keep their numbers, by which their weights are found
        taken.append(f"layers.{index}")
    kept = {id(module) for part in (language, model.get_output_embeddings()) for module in part.modules()}
    around = {
        id(module)
        for module in model.modules()
        if id(module) not in kept and any(id(m) in kept for m in module.modules())
    }
    for parent_name, parent in list(model.named_modules()):
        if id(parent) in around:
            for name, child in list(parent.named_children()):
                if id(child) not in kept | around:
                    delattr(parent, name)
                    taken.append(f"{parent_name}.{name}".lstrip("."))
    return taken


def _crossing(language: Any) -> tuple[int, ...]:
    """Return the layers that attend to images, which texts alone skip (Llama 3.2 Vision)."""
    return tuple(getattr(language, "cross_attention_layers", None) or ())
