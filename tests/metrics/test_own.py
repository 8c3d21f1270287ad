"""Metrics of the user's own, by name."""

import pytest
import torch

from bigcircuit.data.collate import collate
from bigcircuit.errors import UserError
from bigcircuit.metrics.logit_metrics import LogitComparison
from bigcircuit.metrics.own import named_metrics, own_scores
from bigcircuit.metrics.registry import SCORES
from tests.helpers.tiny_models import tiny_examples


def test_two_metrics_of_one_name_are_refused(tmp_path, monkeypatch):
    for module in ("first_metrics", "second_metrics"):
        (tmp_path / f"{module}.py").write_text("def share(logits, batch):\n    return logits\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("BIGCIRCUIT_ALLOW", "first_metrics,second_metrics")
    assert list(named_metrics(["first_metrics:share", "first_metrics:share"])) == ["share"]
    with pytest.raises(UserError, match="second_metrics:share: another metric has the name share"):
        named_metrics(["first_metrics:share", "second_metrics:share"])


def failing(*_):
    """ """
    return {}[0]


def test_what_a_metric_raises_is_one_line():
    with (
        own_scores({"mine": failing}),
        pytest.raises(UserError, match="metrics: mine: raised KeyError: 0; mend the function"),
    ):
        SCORES["mine"].compute(
            LogitComparison(torch.zeros(1, 3), torch.zeros(2, 1, 3), collate(tiny_examples(1), full=False))
        )
