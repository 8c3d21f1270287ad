"""The notebooks run from their first cell to their last, and are stored with what they print."""

import re
from collections import Counter
from pathlib import Path
from textwrap import dedent

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "examples"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))
_STEPS = re.compile(r"(steps\"?: )1[05]0")


def code(name: str) -> list:
    return [cell for cell in nbformat.read(FOLDER / f"{name}.ipynb", 4).cells if cell.cell_type == "code"]


def test_there_are_three_notebooks():
    assert NAMES == ["compare_behaviours", "find_and_believe", "sweep_and_pareto"]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_stored_and_hold_no_error(name):
    cells = code(name)
    kinds = {output.output_type for cell in cells for output in cell.outputs}
    assert kinds and "error" not in kinds
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]


class Client(NotebookClient):
    """Runs a notebook and counts the messages of its kernel, by kind."""

    messages: Counter = Counter()

    def process_message(self, msg, cell, cell_index):
        self.messages[msg["msg_type"]] += 1
        return super().process_message(msg, cell, cell_index)


def execute(notebook) -> Counter:
    client = Client(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": FOLDER}})
    client.messages = Counter()
    client.execute()
    return client.messages


@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs(name):
    """With fewer updates than in the stored outputs."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    for cell in notebook.cells:
        cell.source = _STEPS.sub(r"\g<1>20", cell.source)
    execute(notebook)


def test_progress_is_one_output_that_is_drawn_again_at_its_place():
    """Bars of two phases, 4 s in all: an output each, of which the one that lasts stays."""
    source = """
        import time
        from bigcircuit.runtime.progress import ProgressDisplay
        progress = ProgressDisplay(True)
        progress.print_line("a line of the run")
        with progress.phase("hashing weights", 2**31, "bytes") as hashing:
            time.sleep(1.6)
        with progress.phase("pruning", 200, "steps", lasting=True) as updates:
            for _ in range(200):
                time.sleep(0.01)
                updates.advance(values={"kl": 0.5})
        """
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(dedent(source))])
    messages = execute(notebook)
    texts = [output["data"]["text/plain"].strip() for output in notebook.cells[0].outputs]
    assert [output.output_type for output in notebook.cells[0].outputs] == ["display_data"] * 3
    assert texts[:2] == ["a line of the run", ""]
    assert re.fullmatch(r"pruning +━{16} 200/200 steps +0 s left +kl 0\.5", texts[2])
    assert 3 <= messages["update_display_data"] <= 12, "two a second, and the last of each"
