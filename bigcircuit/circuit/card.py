"""The card of a circuit: a page in Markdown for the folder or hub repository that the circuit is in."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from bigcircuit.ablation.kinds import KINDS
from bigcircuit.circuit.nodes import NodeRow
from bigcircuit.config.plain import without_folders
from bigcircuit.errors import UserError
from bigcircuit.metrics.registry import Scores, page_scores
from bigcircuit.model.granularity import NODE_NAMES

PICTURE_FILE = "circuit.svg"
_MOST_HEADS = 64
"""Names of heads that are listed."""
_SETTINGS = {
    "model": "model", "model_revision": "revision", "model_config_sha256": "sha256 of its config",
    "model_weights_sha256": "sha256 of its weights", "adapter": "adapter", "attention": "attention", "task": "task",
    "task_sha256": "sha256 of its pairs", "ablation": "ablation", "ablation_data": "means over",
    "granularities": "gates", "targets": "sizes asked for", "seed": "seed", "step": "step", "operation": "made by",
    "parents": "made of", "versions": "versions",
}  # fmt: skip
"""Metadata that a card shows -> what the card calls it."""
_FRONT = """---
library_name: bigcircuit
tags:
- bigcircuit
- circuit
- mechanistic-interpretability
---
"""


def circuit_card(
    metadata: Mapping[str, str],
    ablation: str,
    scores: Scores,
    kept: Mapping[str, int],
    nodes: Mapping[str, int],
    heads: Sequence[NodeRow],
    where: str,
) -> str:
    """Write the card. kept, nodes: nodes of the circuit and of its model by granularity. where: hub id or folder of the circuit."""
    model, task = (_cell(without_folders(metadata.get(key, ""))) for key in ("model", "task"))
    parts = [
        f"{_FRONT}\n# Circuit of {task or 'a task'} in {model or 'a language model'}\n",
        f"The nodes of {model or 'the model'} that do the task, found with `bigcircuit`. Every other node outputs "
        f"{KINDS[ablation].description}.\n",
        f"![Kept heads and MLPs]({PICTURE_FILE})\n",
        _table(("nodes", "kept", "of"), [(NODE_NAMES[name], f"{kept[name]:,}", f"{nodes[name]:,}") for name in nodes]),
        _scores(scores, ablation),
        _heads(heads),
        "## Use\n\n```python\nimport bigcircuit\nfrom transformers import AutoModelForCausalLM\n\n"
        f'circuit = bigcircuit.Circuit.from_pretrained("{without_folders(where)}")\n'
        f"model = AutoModelForCausalLM.from_pretrained(...)  # {model or 'the model it was found in'}\n"
        f"with circuit.applied(model{_extra(ablation)}) as masked:\n    masked.generate(...)\n```\n",
        "## Settings\n\n" + _table(("setting", "value"), _settings(metadata)),
    ]
    return "\n".join(filter(None, parts))


def check_card_is_free(path: Path) -> None:
    """Raise UserError if a card written here would replace a file that is none."""
    if path.exists() and not path.read_bytes().startswith(_FRONT.encode()):
        raise UserError(f"{path}: exists already and is no card of a circuit; name another folder")


def _extra(ablation: str) -> str:
    return ", corrupted_ids=..." if KINDS[ablation].needs_corrupted else ""


def _scores(scores: Scores, ablation: str) -> str:
    """Table of the held-out scores with 95% intervals; an arrow shows the better direction."""
    if not scores:
        return ""
    rows = [
        (
            f"{kind.heading} {'↓' if kind.lower_is_better else '↑'}",
            f"{score.mean:.3f}",
            f"{score.low:.3f} to {score.high:.3f}",
        )
        for name, kind in page_scores().items()
        if (score := scores.get(name)) is not None and None not in (score.mean, score.low, score.high)
    ]
    return f"## Scores\n\nOn held-out pairs, {ablation} ablation.\n\n" + _table(("score", "mean", "95% interval"), rows)


def _heads(heads: Sequence[NodeRow]) -> str:
    if not heads:
        return ""
    names = ", ".join(f"{row.name} ({row.neurons}/{row.of})" for row in heads[:_MOST_HEADS])
    more = f" and {len(heads) - _MOST_HEADS} more" if len(heads) > _MOST_HEADS else ""
    return f"## Kept heads\n\nWith the neurons kept in each: {names}{more}.\n"


def _settings(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    rows = []
    for key, name in _SETTINGS.items():
        text = metadata.get(key, "")
        if text and text not in ("[]", "{}"):
            rows.append((name, _cell(_spelled(text))))
    return rows


def _spelled(text: str) -> str:
    """Write JSON lists and objects as text; other metadata as it is. Files are named without their folders on this machine."""
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    if isinstance(value, dict):
        return ", ".join(f"{key} {without_folders(str(item))}" for key, item in value.items())
    if isinstance(value, list):
        items = (item.get("name", item) if isinstance(item, dict) else item for item in value)
        return ", ".join(without_folders(str(item)) for item in items)
    return without_folders(text)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines) + "\n"


def _cell(text: str) -> str:
    """Take out what Markdown, HTML or a string in Python would read as something else: metadata is anybody's."""
    plain = " ".join(text.split())
    return "".join(" " if sign in '|<>`"\\[]' else sign for sign in plain)[:300]
