"""A local task of lm-evaluation-harness: the right and the wrong answer of each pair."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def choice_task(rows: Sequence[Mapping[str, Any]], folder: Path) -> dict[str, Any]:
    """Write rows of `text` and `choices` into a folder and describe the task, named `pairs`, of the likelihoods of the choices."""
    (folder / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    return {
        "task": "pairs",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.json")}, "cache_dir": str(folder / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": 0,
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
