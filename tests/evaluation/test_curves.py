"""Curves of faithfulness against size."""

import pytest


def test_curves_end_at_the_full_model(result):
    (curve,) = result["curves"]["zero"]
    assert curve["draws"] == 10 and curve["cpr_sd"] > 0
    assert curve["cpr_low"] <= curve["cpr"] <= curve["cpr_high"]
    assert result["unfinished"] == result["no_curves"] == []
    assert (curve["method"], curve["level"], curve["ranking"]) == ("random", "head", "signed")
    assert len(curve["points"]) == 10
    assert curve["points"][-1]["faithfulness"] == pytest.approx(1, abs=1e-4)
