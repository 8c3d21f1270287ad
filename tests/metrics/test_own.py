"""Metrics of the user's own, by name."""

import pytest

from bigcircuit.errors import UserError
from bigcircuit.metrics.own import named_metrics


def test_two_metrics_of_one_name_are_refused(tmp_path, monkeypatch):
    for module in ("first_metrics", "second_metrics"):
        (tmp_path / f"{module}.py").write_text("def share(logits, batch):\n    return logits\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("BIGCIRCUIT_ALLOW", "first_metrics,second_metrics")
    assert list(named_metrics(["first_metrics:share", "first_metrics:share"])) == ["share"]
    with pytest.raises(UserError, match="second_metrics:share: another metric has the name share"):
        named_metrics(["first_metrics:share", "second_metrics:share"])
