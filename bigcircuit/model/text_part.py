"""Open a multimodal checkpoint on its language model: text in, text out, without the weights of its other parts.

transformers builds the whole model, by the class that its Auto class chooses, of which the other parts are taken out before
weights are loaded. What is masked is the language model with the vocabulary projection, as a causal language model of its own.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from bigcircuit.errors import UserError

MULTIMODAL = tuple(
    "aya_vision cohere2_vision gemma3 gemma4 glm4v idefics3 internvl lfm2_vl llava llava_next llava_onevision mistral3 mllama "
    "paligemma qwen2_5_vl qwen2_vl qwen3_5 qwen3_5_moe qwen3_vl qwen3_vl_moe smolvlm vipllava".split()
)
"""Model types whose language part computes on texts what the whole model computes; tests show it of each."""

_CAPPED = ("gemma4", "paligemma")
"""Types among them that cap logits."""


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
    text_only: Any = type(whole.__name__, (whole,), members)
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
    return model if text_config(model.config) is model.config else _LanguagePart(model)


def skips_layers(model: Any) -> bool:
    """Whether text does not pass all decoder layers of a multimodal model, so that `language_part` takes layers out of it."""
    return text_config(model.config) is not model.config and bool(_crossing(model.get_decoder()))


class _LanguagePart(nn.Module):
    """Language model with the vocabulary projection and, where its wrapper has them, softly capped logits."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        language = whole.get_decoder()
        if crossing := _crossing(language):
            language.layers = nn.ModuleList(
                layer for index, layer in enumerate(language.layers) if index not in crossing
            )
            language.cross_attention_layers = []
        self.config, self.model, self.lm_head = language.config, language, whole.get_output_embeddings()
        self._cap = (
            getattr(language.config, "final_logit_softcapping", None) if whole.config.model_type in _CAPPED else None
        )
        self._is_tied = self.lm_head.weight is self.get_input_embeddings().weight
        self.train(whole.training)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return next(self.parameters()).dtype

    def tie_weights(self) -> None:
        """Have the vocabulary projection use the embeddings' weights again where it did so before."""
        if self._is_tied:
            self.lm_head.weight = self.get_input_embeddings().weight

    def get_output_embeddings(self) -> Any:
        """Return the vocabulary projection."""
        return self.lm_head

    def get_input_embeddings(self) -> Any:
        """Return the token embeddings."""
        return self.model.get_input_embeddings()

    def forward(self, **inputs: Any) -> CausalLMOutputWithPast:
        """Compute logits, [rows, tokens, vocabulary], of the inputs of a causal language model."""
        logits = self.lm_head(self.model(**inputs).last_hidden_state)
        return CausalLMOutputWithPast(
            logits=logits if self._cap is None else torch.tanh(logits / self._cap) * self._cap
        )


def _take_out_other_parts(model: Any) -> list[str]:
    """Delete the modules with weights that are neither in the language model and the vocabulary projection nor around them.

    Returns their names.
    """
    language, taken = model.get_decoder(), []
    path = next(name for name, module in model.named_modules() if module is language)
    for index in _crossing(language):
        language.layers[index] = nn.Identity()  # the others keep their numbers, by which their weights are found
        taken.append(f"{path}.layers.{index}")
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
