"""What a fresh process runs: greedy text, with the cache that a model returns."""

import pytest
import torch

from benchmarks.models import build_tiny
from bigcircuit.export.fresh_process import greedy

PROMPT = torch.randint(3, 60, (9,), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", ["llama", "mamba", "mamba2", "falcon_mamba", "falcon_h1", "minimax"])
def test_greedy_text_by_a_cache_is_that_of_whole_passes(name):
    model, wanted, widths = build_tiny(name), PROMPT, []
    with torch.no_grad():
        for _ in range(12):
            token = model(input_ids=wanted.unsqueeze(0), use_cache=False).logits[0, -1].argmax()
            wanted = torch.cat([wanted, token.view(1)])
    model.register_forward_pre_hook(lambda _, __, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True)
    assert greedy(model, PROMPT, 12).tolist() == wanted[9:].tolist()
    assert widths == [9] + [1] * 11


def test_a_model_without_a_cache_runs_all_tokens_again():
    model, widths = build_tiny("llama"), []
    model.register_forward_pre_hook(
        lambda _, args, given: (widths.append(given["input_ids"].shape[1]), (args, {**given, "use_cache": False}))[1],
        with_kwargs=True,
    )
    greedy(model, PROMPT, 3)
    assert widths == [9, 10, 11]
