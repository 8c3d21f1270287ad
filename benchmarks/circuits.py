"""Find circuits of the pretrained models: run every config of configs/stories260k and configs/babyllama105 and write the table.

python -m benchmarks.circuits [--only PART_OF_A_NAME]
"""

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path

from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.prune import prune

OUTPUT = Path(__file__).with_suffix(".md")
CONFIGS: list[Path] = [
    *sorted(Path("configs/stories260k").glob("*.yaml")),
    *sorted(Path("configs/babyllama105").glob("*.yaml")),
]


RUNS: list[tuple[Path, int | None]] = [
    (Path("configs/stories260k/natural_pronoun_swap.yaml"), 150),
    *((config, None) for config in CONFIGS),
]
"""Config and target of every run: each config with its own target, and one config with fewer neurons."""


def main() -> None:
    """Run the configs and write the table after each run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of the names of the configs to run; all when empty")
    arguments = parser.parse_args()
    chosen = [(config, total) for config, total in RUNS if arguments.only in str(config)]
    lines = [
        f"# Circuits of pretrained models, {date.today()}",
        "",
        "Default preset, interchange ablation, half the pairs held out; means over held-out pairs with 95% bootstrap intervals.",
        "",
        "| config | neurons | heads | parameters | KL, nats | logit difference (full) | accuracy | exact match | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for config, total in chosen:
        lines.append(_row(config, total))
        print(lines[-1], flush=True)  # noqa: T201
        OUTPUT.write_text("\n".join(lines) + "\n")


def _row(path: Path, total: int | None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        overrides = {"output": f"{folder}/run"} | ({"target.total": total} if total else {})
        summary = json.loads(prune(load(path, overrides), Ranks()).summary.read_text())
    (member,) = summary["members"]
    scores, kept, nodes = member["scores"], member["kept"], summary["nodes"]
    kl, difference = scores["kl"], scores["logit_difference"]
    return (
        f"| {path.parent.name}/{path.stem} | {kept['total']} / {nodes['total']} | {kept['head']} / {nodes['head']} | "
        f"{member['parameters_kept']:.1%} | {kl['mean']:.3f} [{kl['low']:.3f}, {kl['high']:.3f}] | "
        f"{difference['mean']:.2f} ({summary['full']['logit_difference']['mean']:.2f}) | {scores['accuracy']['mean']:.3f} | "
        f"{scores['exact_match']['mean']:.3f} | {summary['seconds']:.0f} |"
    )


if __name__ == "__main__":
    main()
