"""The page at the end of a run: a page that cannot be drawn costs no result."""

import pytest

from bigcircuit.errors import UserError
from bigcircuit.report import render
from bigcircuit.report.run_page import write_run_page
from tests.helpers.short_runs import run


def failing(error):
    def fail(*_):
        raise error

    return fail


def test_a_run_is_finished_though_its_page_cannot_be_drawn(tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr(render, "render_run", failing(ZeroDivisionError("a figure")))
        folder = run(tmp_path / "r", train__steps=1)
    assert folder.finished and folder.circuit("0", 1).exists() and not folder.report.exists()
    assert "no page: drawing it failed (ZeroDivisionError: a figure); `bigcircuit report " in capsys.readouterr().out
    assert write_run_page(folder.path) == f"see {folder.report}"


def test_a_full_disk_is_no_failure_of_drawing(tmp_path, monkeypatch):
    monkeypatch.setattr(render, "render_run", failing(UserError("report.html: cannot be written (No space left)")))
    with pytest.raises(UserError, match="No space left"):
        run(tmp_path / "r", train__steps=1)
    assert not (tmp_path / "r/summary.json").exists()
