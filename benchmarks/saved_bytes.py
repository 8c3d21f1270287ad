"""Count the bytes that autograd saves for the backward pass: GPT-2 small, float32, batch 8 x 32, parameters excluded.

python benchmarks/saved_bytes.py
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.config.load import load
from bigcircuit.config.load import members as config_members
from bigcircuit.data.collate import collate
from bigcircuit.data.pair import Example
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
    OUTPUT.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))  # noqa: T201


if __name__ == "__main__":
    main()
