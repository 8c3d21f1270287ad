"""Skips are counted, and those that hide something fail the run."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = """
import pytest

@pytest.mark.skipif(True, reason="no GPU is here")
@pytest.mark.parametrize("number", range(2))
def test_on_a_gpu(number): ...

def test_in_a_browser(): pytest.skip("no Chromium is here")

def test_that_runs(): ...
"""


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("", 0, []),
        ("-n 2 --most-skips 3", 1, ["no test may skip here because 'no Chromium is here'"]),
        ("--most-skips 2 -k gpu", 0, []),
        ("--most-skips 1 -k gpu", 1, ["2 tests skip; --most-skips allows 1"]),
    ],
)
def test_a_run_fails_for_skips_beyond_those_that_are_known(tmp_path, words, code, said):
    (tmp_path / "conftest.py").write_text("from tests.helpers.skips import *")
    (tmp_path / "test_some.py").write_text(TESTS)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words.split(), "--rootdir", str(tmp_path), str(tmp_path)],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert f"skipped: {2 if 'gpu' in words else 3}" in lines and "  2 x no GPU is here" in lines
    assert [line.partition("ERROR: ")[2].partition(" (")[0] for line in lines if line.startswith("ERROR: ")] == said
