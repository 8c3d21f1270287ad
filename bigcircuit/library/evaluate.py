"""`bigcircuit.evaluate`: the evaluation of `bigcircuit evaluate` from Python, with metrics of the caller's own."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bigcircuit.config.load import dotted_keys, load
from bigcircuit.config.verbs import VERBS
from bigcircuit.distributed.ranks import joined_ranks
from bigcircuit.evaluation.config import EvaluationSettings, validated
from bigcircuit.evaluation.evaluate import evaluate_circuits
from bigcircuit.library.find import dotted
from bigcircuit.library.result import FoundCircuits
from bigcircuit.metrics.own import Metric, named_metrics, own_scores
from bigcircuit.results.evaluation import Evaluation
from bigcircuit.runtime.progress import ProgressDisplay


def evaluate(
    circuits: FoundCircuits | str | Path | Sequence[str | Path],
    *,
    metrics: Mapping[str, Metric] | Sequence[str] | None = None,
    config: str | Path | None = None,
    quiet: bool = False,
    **settings: Any,
) -> Evaluation:
    """Measure faithfulness, completeness and minimality of circuits, as `bigcircuit evaluate` does, and write evaluation.json.

    circuits: what `find` returned, run folders or circuit files. metrics: name -> function of (logits, batch): the logits of one
    circuit at the scored positions, [S, V], and the batch (data/collate.py), to one number a pair, [B]; they stand beside the
    scores of every circuit in the result, on the terminal and in evaluation.json; or names, as in `--metrics`. config: names model
    and task of circuit files outside run folders. quiet: print nothing. settings: those of `bigcircuit evaluate --help all`, such
    as `draws=20`, or of a config, by section or dotted. Raises UserError.
    """
    given = dotted(settings)
    own = {key: value for key, value in given.items() if key in EvaluationSettings.model_fields}
    rest = {key: value for key, value in given.items() if key not in own}
    VERBS["evaluate"].check_read(key for key in rest if key in dotted_keys())
    if isinstance(circuits, FoundCircuits):
        names = [str(circuits.folder)]
    else:
        several = [circuits] if isinstance(circuits, str | Path) else circuits
        names = [str(Path(one).expanduser()) for one in several]
    asked = validated(EvaluationSettings, own)
    wanted = {key: value for key, value in rest.items() if key == "model.device"}
    with ExitStack() as stack:
        stack.enter_context(own_scores(metrics if isinstance(metrics, Mapping) else named_metrics(metrics or ())))
        ranks = stack.enter_context(joined_ranks(load(None, wanted).model.device))
        progress = ProgressDisplay(False) if quiet else None
        return evaluate_circuits(
            names, asked, ranks, config=None if config is None else str(config), overrides=rest, progress=progress
        )
