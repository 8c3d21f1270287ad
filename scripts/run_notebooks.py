"""Run the notebooks in examples/ and store what they print.

    python -m scripts.run_notebooks [NAME ...]      needs the test extras

Without NAME all notebooks run. A cell that fails ends the script, and its notebook stays as it was.
"""

import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[1] / "examples"


def run_notebook(path: Path) -> None:
    """Run a notebook from its first cell to its last and write it with its outputs, without times and libraries' warnings."""
    notebook = nbformat.read(path, 4)
    resources = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=900, kernel_name="python3", record_timing=False, resources=resources).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)


def main() -> None:
    """Run the notebooks of the command line, or all."""
    names = sys.argv[1:] or sorted(path.stem for path in FOLDER.glob("*.ipynb"))
    for name in names:
        run_notebook(FOLDER / f"{name}.ipynb")
        print(name, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
