"""Measure how much longer `generate` takes inside a circuit, on a Llama of about 46M parameters with random weights.

Generation by the whole model and by circuits under several ablations alternates in one process; ratios are medians of rounds. Under
interchange ablation two prompts are run, so twice the time is expected.

    python -m benchmarks.applied [--rounds 9] [--tokens 32]
"""

import argparse
import statistics
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.step_time import make_model
from bigcircuit.ablation.ablation import INTERCHANGE, ZERO, Ablation
from bigcircuit.forward.applied import AppliedMasks, CorruptedPrompts
from bigcircuit.model.granularity import ATTENTION, MLP, SITE_WIDTH
from bigcircuit.model.sites import FrozenModel

OUTPUT = Path(__file__).with_suffix(".md")
SHAPES = ((1, 32), (8, 128))
"""Rows and tokens of the prompts."""
BOUND = 1.25
"""Largest ratio that is promised under zero and mean ablation."""


def circuits(frozen: FrozenModel, ids: torch.Tensor) -> dict[str, AbstractContextManager[Any]]:
    """Make a context of a random circuit of a tenth of the neurons for every ablation, and one that does nothing."""
    generator = torch.Generator().manual_seed(0)
    masks = [
        {
            site: (torch.rand(1, 1, SITE_WIDTH[site](shape), generator=generator) < 0.1).float()
            for site in (ATTENTION, MLP)
        }
        for shape in frozen.shapes
    ]
    shape, layers = frozen.shapes[0], len(frozen.shapes)
    constants = {site: torch.randn(1, layers, 1, SITE_WIDTH[site](shape), generator=generator) for site in masks[0]}
    return {
        "whole model": nullcontext(),
        "zero": AppliedMasks(frozen, masks, ZERO),
        "mean": AppliedMasks(frozen, masks, Ablation("mean", constants)),
        "interchange": AppliedMasks(frozen, masks, INTERCHANGE, CorruptedPrompts(ids.flip(1))),
    }


def measure(frozen: FrozenModel, rows: int, length: int, tokens: int, rounds: int) -> dict[str, list[float]]:
    """Return the CPU seconds of every round by name: other programs on the machine hardly change these."""
    ids = torch.randint(3, 16_384, (rows, length), generator=torch.Generator().manual_seed(1))
    found: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        for name, context in circuits(frozen, ids).items():
            with context:
                start = time.process_time()
                frozen.model.generate(
                    ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0, use_cache=True
                )
                seconds = time.process_time() - start
            if turn:  # the first round warms up
                found.setdefault(name, []).append(seconds)
    return found


def table(rounds: int, tokens: int) -> tuple[str, bool]:
    """Measure and lay out. Returns the page, and whether the promised ratio holds."""
    frozen, lines, holds = make_model(), [], True
    for rows, length in SHAPES:
        found = measure(frozen, rows, length, tokens, rounds)
        whole = found["whole model"]
        for name, seconds in found.items():
            ratio = statistics.median(s / w for s, w in zip(seconds, whole, strict=True))
            holds &= name == "interchange" or ratio <= BOUND
            lines.append(f"| {rows} x {length} | {name} | {statistics.median(seconds):.3f} | {ratio:.2f} |")
    threads = f"float32, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    head = f"""# Generation inside a circuit, {date.today()}

`python -m benchmarks.applied`: Llama of 46M parameters, {threads}.
Prompts are continued by {tokens} tokens, greedily and with a KV cache; CPU seconds,
medians of {rounds} alternating rounds.
Promised for zero and mean ablation: at most {BOUND:g} times the whole model.

| prompts | ablation | CPU seconds | / whole model |
|---|---|---|---|
"""
    return head + "\n".join(lines) + "\n", holds


def main() -> None:
    """Measure, write the table and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=32)
    arguments = parser.parse_args()
    text, holds = table(arguments.rounds, arguments.tokens)
    OUTPUT.write_text(text)
    sys.stdout.write(text)
    raise SystemExit(0 if holds else 1)


if __name__ == "__main__":
    main()
