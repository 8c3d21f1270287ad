"""Mixtures without the experts that a circuit closes, and with narrower ones."""

import pytest
import torch
from safetensors.torch import load_file

import bigcircuit
from benchmarks.models import build_tiny
from bigcircuit.ablation.ablation import ZERO
from bigcircuit.config.schema import ModelConfig
from bigcircuit.errors import UserError
from bigcircuit.export.fresh_process import run_prompts
from bigcircuit.export.verify import Prompts, compare_outputs, run_masked
from bigcircuit.model.load import load_frozen
from bigcircuit.model.resolve import resolve_model
from tests.helpers.exports import leaf_masks, request_of, write_export

PROMPTS = Prompts(torch.randint(3, 96, (2, 8), generator=torch.Generator().manual_seed(0)), 4, 3)


@pytest.mark.parametrize("name", ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3", "nemotron_h"])
def test_a_compact_mixture_is_the_masked_model(tmp_path, name):
    """Gate and up in one parameter or up alone, one after the other or in turns, transposed, with biases; dense layers beside."""
    build_tiny(name).save_pretrained(tmp_path / "base")
    model = resolve_model(ModelConfig(path=str(tmp_path / "base")))
    frozen = load_frozen(model.config)
    index, shape = next((i, shape) for i, shape in enumerate(model.shapes) if shape.experts)
    sizes = []
    for neurons in (False, True):
        masks = leaf_masks(model.shapes, neurons=neurons)
        request = request_of(model, ZERO, masks)
        folder = tmp_path / f"out{neurons}"
        prepared = write_export("compact", request, folder)
        loaded = bigcircuit.load_exported(folder, dtype=torch.float32).eval()
        outputs = run_prompts(loaded, PROMPTS.ids, PROMPTS.prompt_tokens, PROMPTS.new_tokens)
        found = compare_outputs(run_masked(frozen, request, PROMPTS), outputs)
        assert found.is_equal and found.same_tokens == found.tokens, found
        stored = load_file(folder / "model.safetensors")
        [down] = [t for key, t in stored.items() if f".{index}." in key and key.endswith("experts.down_proj")]
        assert len(down) == int(masks["expert"][index].sum()) < shape.experts
        assert prepared.parameters == sum(parameter.numel() for parameter in loaded.parameters())
        sizes.append(prepared.parameters)
    assert sizes[1] < sizes[0] < sum(parameter.numel() for parameter in frozen.model.parameters())


def test_experts_of_a_form_of_their_own_are_refused(tmp_path):
    build_tiny("llama4_text").save_pretrained(tmp_path / "base")
    model = resolve_model(ModelConfig(path=str(tmp_path / "base")))
    with pytest.raises(UserError, match=r"llama4_text \(mixture of experts\) has experts of a form of their own"):
        write_export("compact", request_of(model, ZERO, leaf_masks(model.shapes)), tmp_path / "out")
