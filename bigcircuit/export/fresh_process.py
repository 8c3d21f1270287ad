"""A fresh process that opens exports: `python fresh_process.py JOBS.json`.

It is run by its path and imports nothing of this project but for compact models. The file lists jobs: how to load a folder, prompts
to run, where to write logits and greedy text, and what to time.
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

SECONDS = 0.4
"""Least time of one measurement."""
ROUNDS = 5
"""Measurements of each model, in turns; the median counts."""


def load_transformers(folder: str, dtype: torch.dtype) -> Any:
    """Load a stock model."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def load_compact(folder: str, dtype: torch.dtype) -> Any:
    """Load a compact model."""
    import bigcircuit

    return bigcircuit.load_exported(folder, dtype=dtype)


def load_peft(folder: str, dtype: torch.dtype) -> Any:
    """Load a base model with an adapter."""
    from peft import AutoPeftModelForCausalLM

    return AutoPeftModelForCausalLM.from_pretrained(folder, dtype=dtype)


def load_gguf(folder: str, dtype: torch.dtype) -> Any:
    """Load a GGUF file by transformers, which undoes the layout; biases only where a config beside the file has them."""
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {"config": AutoConfig.from_pretrained(folder)} if os.path.exists(f"{folder}/config.json") else {}
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file="model.gguf", dtype=dtype, **settings)


LOADERS: dict[str, Callable[[str, torch.dtype], Any]] = {
    "transformers": load_transformers,
    "bigcircuit": load_compact,
    "peft": load_peft,
    "gguf": load_gguf,
}
"""Name -> loader of a folder."""


@torch.no_grad()
def run_prompts(model: Any, prompts: Tensor, prompt_tokens: int, new_tokens: int) -> dict[str, Tensor]:
    """Compute logits of prompts, [R, T, V], and continue the first tokens of each greedily, [R, new_tokens].

    prompts: token ids [R, T]; prompt_tokens: how many of them are continued.
    """
    texts = [greedy(model, row[:prompt_tokens], new_tokens) for row in prompts]
    return {"logits": model(input_ids=prompts, use_cache=False).logits.float(), "text": torch.stack(texts)}


@torch.no_grad()
def greedy(model: Any, prompt: Tensor, new_tokens: int) -> Tensor:
    """Continue a prompt [T] by the likeliest tokens, with a key/value cache where the model has one; returns the new ones."""
    from transformers.cache_utils import Cache

    found: list[Tensor] = []
    output = model(input_ids=prompt.unsqueeze(0), use_cache=True)
    for _ in range(new_tokens):
        found.append(output.logits[0, -1].argmax())
        if len(found) == new_tokens:
            break
        cache = {name: value for name, value in output.items() if isinstance(value, Cache)}
        if cache:  # the next call takes it by the same name, which differs between models and versions
            output = model(input_ids=found[-1].view(1, 1), **cache, use_cache=True)
        else:  # the model keeps its state elsewhere: all tokens are run again
            output = model(input_ids=torch.cat([prompt, torch.stack(found)]).unsqueeze(0), use_cache=False)
    return torch.stack(found) if found else prompt[:0]


def measure_speed(models: Sequence[Any], prefill: int, decode: int, vocabulary: int) -> list[dict[str, float]]:
    """Measure tokens per second of each model, batch 1, in turns. prefill, decode: tokens of the two measurements."""
    prompt = torch.arange(prefill) % vocabulary
    start = prompt[: max(prefill // 8, 1)]

    def prefilling(model: Any) -> int:
        with torch.no_grad():
            model(input_ids=prompt.unsqueeze(0), use_cache=True)
        return prefill

    def decoding(model: Any) -> int:
        greedy(model, start, decode)
        return decode

    found: list[dict[str, float]] = [{} for _ in models]
    for name, run in (("prefill", prefilling), ("decode", decoding)):
        for model in models:
            run(model)
        rounds = [[_rate(run, model) for model in models] for _ in range(ROUNDS)]
        for index, rates in enumerate(zip(*rounds, strict=True)):
            found[index][name] = statistics.median(rates)
    return found


def _rate(run: Callable[[Any], int], model: Any) -> float:
    started, tokens = time.perf_counter(), 0
    while (passed := time.perf_counter() - started) < SECONDS or not tokens:
        tokens += run(model)
    return tokens / passed


def run_job(job: dict[str, Any]) -> None:
    """Open one export, write what it computes, and time it beside its base."""
    from safetensors.torch import load_file, save_file

    load = LOADERS[job["loader"]]
    found: dict[str, Any] = {}
    if job["prompts"]:
        model = load(job["folder"], torch.float32).eval()
        asked = load_file(job["prompts"])["prompts"]
        save_file(run_prompts(model, asked, job["prompt_tokens"], job["new_tokens"]), job["result"])
        del model
    if speed := job["speed"]:
        dtype = getattr(torch, job["dtype"])
        models = [load(job["folder"], dtype).eval(), load_transformers(job["base"], dtype).eval()]
        exported, base = measure_speed(models, speed["prefill"], speed["decode"], speed["vocabulary"])
        found = {"exported": exported, "base": base}
    with open(job["report"], "w", encoding="utf-8") as file:
        json.dump(found, file)


def run_file() -> None:
    """Run the jobs of a file."""
    sys.path.pop(0)  # the folder of this file, whose names are no packages
    with open(sys.argv[1], encoding="utf-8") as file:
        asked = json.load(file)
    torch.set_num_threads(asked["threads"])
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    for job in asked["jobs"]:
        run_job(job)


if __name__ == "__main__":
    run_file()
