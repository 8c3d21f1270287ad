"""Measure what keeping activations in few bits costs: the error of the gradient, and the held-out KL of whole runs.

    python -m benchmarks.few_bits [--seeds 2] [--only NAME]

Every pair file of benchmarks/circuits.py, the default preset, members of one population as seeds. The error of the gradient is that
of all gates in the first update, relative to the exact gradient.
"""

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path

from benchmarks.circuits import CONFIGS
from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.forward.few_bits import BITS
from bigcircuit.forward.reference_logits import ReferenceLogits
from bigcircuit.gates.population import Population
from bigcircuit.model.granularity import node_counts
from bigcircuit.prune import prune
from bigcircuit.train.resolve import resolve
from bigcircuit.train.setup import set_up
from bigcircuit.train.state import TrainState
from bigcircuit.train.step import faithfulness_gradient

OUTPUT = Path(__file__).with_suffix(".md")
SAVED = ("exact", *BITS)


def gradients(path: Path) -> dict[str, float]:
    """Relative error of the first update's gradient by `train.saved`."""
    found = {}
    for saved in SAVED:
        config = load(path, {"train.saved": saved, "train.both_ways": False})
        context = set_up(resolve(config, Ranks()))
        with context.streams as streams:
            examples = context.run.training_order(context.data.splits["train"]).batch(0)
            nodes = node_counts(streams.frozen.shapes, config.gates.granularities)
            state = TrainState.new(Population.new(context.run.members, streams.frozen.shapes), nodes)
            references = ReferenceLogits(streams, examples, context.micro_batches)
            found[saved] = faithfulness_gradient(state, streams, references, examples, context.micro_batches).gradient
    exact = found["exact"]
    return {saved: float((found[saved] - exact).norm() / exact.norm()) for saved in BITS}


def divergences(path: Path, saved: str, seeds: int) -> list[float]:
    """Held-out KL of each seed, nats."""
    with tempfile.TemporaryDirectory() as folder:
        overrides = {"output": f"{folder}/run", "train.saved": saved, "population.seeds": seeds}
        summary = json.loads(prune(load(path, overrides), Ranks()).summary.read_text())
    return [member["scores"]["kl"]["mean"] for member in summary["members"]]


def main() -> None:
    """Measure and write the table after each file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="", help="part of the names of the configs to run; all when empty")
    arguments = parser.parse_args()
    lines = [
        f"# Activations kept in few bits, {date.today()}",
        "",
        f"`python -m benchmarks.few_bits`: default preset, interchange ablation; held-out KL in nats, by seed ({arguments.seeds}).",
        "",
        "| pairs | error of the gradient, 8bit | 4bit | KL, exact | 8bit | 4bit |",
        "|---|---|---|---|---|---|",
    ]
    rows = {line.split("|")[1]: line for line in OUTPUT.read_text().splitlines()[len(lines) :]}
    for path in (one for one in CONFIGS if arguments.only in str(one)):
        errors = gradients(path)
        found = {saved: divergences(path, saved, arguments.seeds) for saved in SAVED}
        cells = [f"{errors[saved]:.4f}" for saved in BITS]
        cells += [", ".join(f"{value:.3f}" for value in values) for values in found.values()]
        key = f" {path.parent.name}/{path.stem} "
        rows[key] = f"|{key}| {' | '.join(cells)} |"
        print(rows[key], flush=True)  # noqa: T201
        OUTPUT.write_text("\n".join([*lines, *rows.values()]) + "\n")


if __name__ == "__main__":
    main()
