"""Commands and Python in the documentation: each block is run, or says why not.

A block is run behind `<!-- run -->`, or `<!-- run: OPTIONS -->` with options that make its last command shorter. Blocks of one
page run one after the other in one folder. A block that is not run stands behind `<!-- not run: REASON -->`.
"""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bigcircuit.cli import RUNS, answer

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^(?:<!-- (?P<mark>.*?) -->\n)?```(?P<language>\w*)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)
_COMMAND = re.compile(r"^(?:\S*/)?(?:bigcircuit|deepspeed|torchrun|python3?|sbatch|pip|hf|docker) ", re.MULTILINE)


class Block(NamedTuple):
    """A fenced block that holds commands or Python."""

    mark: str
    """Text of the comment before it, empty without one."""
    language: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """Find the blocks of a page that hold commands or Python."""
    for found in _BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")):
        if found["language"] == "python" or _COMMAND.search(found["text"]):
            yield Block(found["mark"] or "", found["language"], found["text"])


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_run_or_says_why_not(page):
    unmarked = [one.text for one in blocks(page) if not re.match(r"run$|run: \S|not run: \S", one.mark)]
    assert unmarked == []


@pytest.mark.parametrize("page", [page for page in PAGES if any(one.mark.startswith("run") for one in blocks(page))])
def test_blocks_of_a_page_run(page, tmp_path, monkeypatch, capsys):
    for name in ("configs", "launchers"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in blocks(page):
        if not block.mark.startswith("run"):
            continue
        if block.language == "python":
            exec(compile(block.text, page, "exec"), names)
            continue
        *commands, last = block.text.replace("\\\n", " ").strip().splitlines()
        for line in [*commands, f"{last} {block.mark.removeprefix('run').removeprefix(':')}"]:
            program, verb, *words = shlex.split(line, comments=True)
            assert program == "bigcircuit", line
            assert answer(RUNS[verb], words) == 0, capsys.readouterr().err
