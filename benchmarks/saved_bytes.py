"""Count the bytes that autograd saves for the backward pass: GPT-2 small, float32, parameters excluded.

    python -m benchmarks.saved_bytes [PAIRS TOKENIZER]

Two streams on random prompts of 8 x 32 tokens, and, on pairs of a file tokenised for the model, what updates over the suffix
save in each precision of `train.saved`.
"""

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.config.load import load
from bigcircuit.config.load import members as config_members
from bigcircuit.data.collate import collate
from bigcircuit.data.dataset import load_task
from bigcircuit.data.pair import Example
from bigcircuit.forward.few_bits import BITS, FewBitHooks, Packed
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.population import Population
from bigcircuit.model.sites import find_sites

ROWS, TOKENS = 8, 32
OUTPUT = Path(__file__).with_suffix(".md")


class SavedBytes:
    """Counter of the bytes that autograd saves for the backward pass, each storage once, parameters excluded."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._known = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self._kept: list[Tensor] = []  # a meta storage must stay alive, or its address is used again
        self.total = 0

    def packed(self, saved: Any) -> Any:
        """Count what few bits make of a tensor."""
        for tensor in (saved.codes, saved.scales) if isinstance(saved, Packed) else (saved,):
            self(tensor)
        return saved

    def __call__(self, tensor: Tensor) -> Tensor:
        """Count a tensor that is saved; the pack hook."""
        key = tensor.untyped_storage()._cdata
        if key not in self._known:
            self._known.add(key)
            self._kept.append(tensor)
            self.total += tensor.untyped_storage().nbytes()
        return tensor


@contextmanager
def count_saved(model: torch.nn.Module) -> Iterator[SavedBytes]:
    """Count the bytes that are saved for the backward pass inside."""
    counter = SavedBytes(model)
    with torch.autograd.graph.saved_tensors_hooks(counter, lambda tensor: tensor):
        yield counter


def plain(layers: int, checkpointing: bool) -> int:
    """Count for the plain model: gradients of activations only, logits at one position per row."""
    model = GPT2LMHeadModel(GPT2Config(n_layer=layers)).requires_grad_(False)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train(checkpointing)  # transformers uses activation checkpointing in training mode only; dropout is off below
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ids = torch.randint(0, 50_000, (ROWS, TOKENS))
    with count_saved(model) as saved:
        model(inputs_embeds=model.transformer.wte(ids).requires_grad_(), use_cache=False, logits_to_keep=1)
    return saved.total


def masked(layers: int, checkpointing: bool, members: int = 1) -> int:
    """Count for an update of this project, from the gates to the logits."""
    frozen = find_sites(GPT2LMHeadModel(GPT2Config(n_layer=layers)).eval().requires_grad_(False))
    rng = random.Random(0)

    def prompt() -> tuple[int, ...]:
        return tuple(rng.randrange(50_000) for _ in range(TOKENS))

    examples = [
        Example(id=index, clean=prompt(), corrupted=prompt(), answers=((5,),), wrong_answers=((6,),), source="")
        for index in range(ROWS)
    ]
    population = Population.new(config_members(load(None)) * members, frozen.shapes)
    with Streams(frozen, INTERCHANGE, checkpointing) as streams, count_saved(frozen.model) as saved:
        streams.masked(collate(examples, full=False), population.draw(range(ROWS)), members)
    return saved.total


def on_pairs(examples: list[Example]) -> dict[str, int]:
    """Count for the plain model on the clean prompts of a batch, and for an update over the suffix, by `train.saved`."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=128_256)).eval().requires_grad_(False)  # ids of the answers
    frozen, batch = find_sites(model), collate(examples, full=False, padding="aligned")
    with count_saved(model) as saved:
        embedded = model.transformer.wte(batch.clean).requires_grad_()
        model(inputs_embeds=embedded, attention_mask=batch.attention_mask, use_cache=False, logits_to_keep=1)
    found = {"plain model": saved.total}
    population = Population.new(config_members(load(None)), frozen.shapes)
    with Streams(frozen, INTERCHANGE) as streams:
        recorded = streams.record(batch, ["attention", "mlp"])
        for name in ("exact", *BITS):
            counter = SavedBytes(model)
            hooks = FewBitHooks(BITS[name]) if name in BITS else None
            pack = counter if hooks is None else partial(_packed, counter, hooks)
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
                streams.masked(batch, population.draw(range(len(examples))), 1, recorded)
            found[name] = counter.total
    return found


def _packed(counter: SavedBytes, hooks: FewBitHooks, tensor: Tensor) -> Any:
    return counter.packed(hooks.pack(tensor))


def read(pairs: str, tokenizer: str) -> list[Example]:
    """Read the first eight training pairs of a file."""
    task = load(None, {"task.name": "pairs", "task.path": pairs, "task.size": 200}).task
    config = GPT2Config(vocab_size=128_256)
    return load_task(task, AutoTokenizer.from_pretrained(tokenizer), config).splits["train"][:8]


def main() -> None:
    """Count and write the table."""
    lines = [
        f"# Bytes saved for backward, {date.today()}",
        "",
        f"GPT-2 small shape, float32, batch {ROWS} x {TOKENS}, interchange ablation, one member; MB, parameters excluded.",
        "",
        "| layers | checkpointing | plain model | bigcircuit | ratio |",
        "|---|---|---|---|---|",
    ]
    for layers in (12, 24):
        for checkpointing in (False, True):
            base, ours = plain(layers, checkpointing), masked(layers, checkpointing)
            lines.append(
                f"| {layers} | {'yes' if checkpointing else 'no'} | {base / 1e6:.1f} | {ours / 1e6:.1f} | {ours / base:.2f} |"
            )
    if sys.argv[1:]:
        counted = on_pairs(read(*sys.argv[1:]))
        lines += [
            "",
            "Updates over the suffix, 8 pairs, 12 layers, one member:",
            "",
            "| | MB | of the plain model |",
            "|---|---|---|",
        ]
        whole = counted["plain model"]
        lines += [f"| {name} | {size / 1e6:.1f} | {size / whole:.2f} |" for name, size in counted.items()]
    OUTPUT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
