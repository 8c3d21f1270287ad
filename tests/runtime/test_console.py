"""Text of others is text on the terminal: neither rich's markup nor its emoji codes nor escape sequences act."""

import ast
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

import bigcircuit
from bigcircuit.check import check_config, show_pairs
from bigcircuit.config.load import load
from bigcircuit.errors import printable
from bigcircuit.runtime.console import PlainConsole
from bigcircuit.runtime.progress import ProgressDisplay

ROOT = Path(bigcircuit.__file__).parent
FOREIGN = ("[INST] a [/INST]", "[a]", "runs/[/x", "[bold]b[/bold]", ":warning:", "\\[c]", "[link=x]y[/link]")


def printed(*renderables, width=200):
    stream = io.StringIO()
    PlainConsole(file=stream, width=width).print(*renderables)
    return stream.getvalue()


@pytest.mark.parametrize("text", FOREIGN)
def test_titles_headings_cells_and_lines_are_text(text):
    table = Table(title=f"title {text}", caption=f"caption {text}")
    table.add_column(f"head {text}")
    table.add_row(f"cell {text}")
    shown = printed(table)
    assert all(f"{part} {text}" in shown for part in ("title", "caption", "head", "cell"))
    assert printed(f"line {text}") == f"line {text}\n"
    stream = io.StringIO()
    progress = ProgressDisplay(True, console=PlainConsole(file=stream, width=200))
    progress.print_line(text)
    progress.print_table(table)
    assert stream.getvalue().startswith(f"{text}\n") and f"cell {text}" in stream.getvalue()


def test_control_characters_and_lone_surrogates_are_shown_as_escapes():
    assert printed("a\x1b[2Jb\x07\x9bc\ud800d\te\nf") == "a\\x1b[2Jb\\x07\\x9bc\\ud800d       e\nf\n"
    assert printable("Zoë 東京 🙂 a\tb\n") == "Zoë 東京 🙂 a\tb\n"


def test_no_other_console_is_made():
    """The help alone, which prints texts of this project and needs no other import, has a console of rich's own."""
    made = {
        path.relative_to(ROOT).as_posix()
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Console"
    }
    assert made == {"config/options.py"}


@pytest.fixture
def foreign_pairs(tmp_path):
    """A pair file whose path, prompts and answers look like markup."""
    path = tmp_path / "[x]" / "[bold].jsonl"
    path.parent.mkdir()
    pairs = [
        {"clean": f"[INST]{one}[/INST] [a] :cat:", "corrupted": f"[INST]{other}[/INST] [a] :cat:"}
        for one, other in zip("13579bdfhj", "2468acegik", strict=True)
    ]
    answers = {"answers": [" [/a]"], "wrong_answers": [" [/b]"]}
    path.write_text("".join(json.dumps(pair | answers) + "\n" for pair in pairs))
    return path


def test_check_and_tasks_print_prompts_and_paths_as_they_are(foreign_pairs):
    config = load(None, {"task.name": "pairs", "task.path": str(foreign_pairs), "target.total": 99})
    stream = io.StringIO()
    console = PlainConsole(file=stream, width=400)
    show_pairs(config, console)
    check_config(config, console)
    pairs, checked = stream.getvalue().split("sites and gates")
    assert "[x]/[bold].jsonl" in re.sub(r"\s", "", pairs), "a title is broken at the width of its table"
    for shown in (pairs, checked):
        assert "[INST]1[/INST] [a] :cat:" in shown and "' [/a]'" in shown


def test_text_that_the_terminal_cannot_show_is_shown_as_escapes(foreign_pairs):
    foreign_pairs.write_text(foreign_pairs.read_text().replace(":cat:", "\U0001f408"), encoding="utf-8")
    words = ["tasks", "--task.name", "pairs", "--task.path", str(foreign_pairs)]
    done = subprocess.run(
        [sys.executable, "-m", "bigcircuit", *words],
        capture_output=True, text=True, cwd=ROOT.parent, env={**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "400"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "[INST]1[/INST] [a] \\U0001f408" in done.stdout


def test_a_message_holds_no_escape_sequences():
    done = subprocess.run(
        [sys.executable, "-m", "bigcircuit", "prune", "--config", "a\x1b[2J.yaml"],
        capture_output=True, text=True, cwd=ROOT.parent,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (2, "bigcircuit: a\\x1b[2J.yaml: no such config file\n")


def test_bars_are_drawn_on_a_terminal_and_in_a_notebook():
    assert PlainConsole(force_jupyter=True).can_redraw
    assert PlainConsole(force_terminal=True, force_jupyter=False, _environ={"TERM": "xterm"}).can_redraw
    assert not PlainConsole(file=io.StringIO(), force_jupyter=False).can_redraw
