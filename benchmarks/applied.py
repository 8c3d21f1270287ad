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


def measure(
    frozen: FrozenModel, rows: int, length: int, tokens: int, rounds: int
) -> dict[str, list[tuple[float, ...]]]:
    """Return seconds by the clock and CPU seconds of every round, by name. Other programs hardly change the latter."""
    ids = torch.randint(3, 16_384, (rows, length), generator=torch.Generator().manual_seed(1))
    found: dict[str, list[tuple[float, ...]]] = {}
    for turn in range(rounds + 1):
        for name, context in circuits(frozen, ids).items():
            with context:
                start = time.monotonic(), time.process_time()
                frozen.model.generate(
                    ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0, use_cache=True
                )
                end = time.monotonic(), time.process_time()
            if turn:  # the first round warms up
                found.setdefault(name, []).append(tuple(b - a for a, b in zip(start, end, strict=True)))
    return found


def table(rounds: int, tokens: int) -> tuple[str, bool]:
    """Measure and lay out. Returns the page, and whether the promised ratio holds."""
    frozen, lines, holds = make_model(), [], True
    for rows, length in SHAPES:
        found = measure(frozen, rows, length, tokens, rounds)
        whole = found["whole model"]
        for name, seconds in found.items():
            cells = []
            for clock in (0, 1):
                ratio = statistics.median(s[clock] / w[clock] for s, w in zip(seconds, whole, strict=True))
                holds &= name == "interchange" or ratio <= BOUND
                cells += [f"{statistics.median(s[clock] for s in seconds):.3f}", f"{ratio:.2f}"]
            lines.append(f"| {rows} x {length} | {name} | {' | '.join(cells)} |")
    threads = f"float32, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    head = f"""# Generation inside a circuit, {date.today()}

`python -m benchmarks.applied`: Llama of 46M parameters, {threads}.
Prompts are continued by {tokens} tokens, greedily and with a KV cache; medians of {rounds} alternating rounds.
Promised for zero and mean ablation: at most {BOUND:g} times the whole model, by the clock and in CPU seconds.

| prompts | ablation | seconds | / whole model | CPU seconds | / whole model |
|---|---|---|---|---|---|
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
