"""Circuits of the pretrained models in ../shared: run every config at several sizes and write the table.

python benchmarks/circuits.py [--totals 290 150] [--configs configs/stories260k/natural_pronoun_swap.yaml ...]
"""

import argparse
import json
import tempfile
from datetime import date
from pathlib import Path

from bigcircuit.config_file import load
from bigcircuit.distributed import Ranks
from bigcircuit.prune import prune

OUTPUT = Path(__file__).with_suffix(".md")
CONFIGS = [*sorted(Path("configs/stories260k").glob("*.yaml")), *sorted(Path("configs/babyllama105").glob("*.yaml"))]


def main() -> None:
    """Run and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configs", type=Path, nargs="+", default=CONFIGS)
    parser.add_argument(
        "--totals", type=int, nargs="*", default=[], help="site neurons; as the config stands if absent"
    )
    arguments = parser.parse_args()
    lines = [
        f"# Circuits of pretrained models, {date.today()}",
        "",
        "Default preset, interchange ablation, half the pairs held out; means over held-out pairs with 95% bootstrap intervals.",
        "",
        "| config | neurons | heads | parameters | KL, nats | logit difference (full) | accuracy | exact match | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for config in arguments.configs:
        for total in arguments.totals or [None]:
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
