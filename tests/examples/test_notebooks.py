"""The notebooks run from their first cell to their last, and are stored with what they print."""

import re
from pathlib import Path

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


@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs(name):
    """With fewer updates than in the stored outputs."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
    for cell in notebook.cells:
        cell.source = _STEPS.sub(r"\g<1>20", cell.source)
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": FOLDER}}).execute()
