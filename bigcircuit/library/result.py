"""What `bigcircuit.find` returns: circuits, scores, and the run folder with its page."""

import json
import shutil
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.circuit.folder import circuit_files
from bigcircuit.config.extras import need
from bigcircuit.errors import UserError
from bigcircuit.io.files import removing, temporary_path
from bigcircuit.io.run_dir import RunDir
from bigcircuit.metrics.registry import Scores


class ReportPage(NamedTuple):
    """A page: a path, and in a notebook the page itself."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        content = escape(self.path.read_text(encoding="utf-8"), quote=True)
        return f'<iframe srcdoc="{content}" width="100%" height="700" style="border: 0" title="report"></iframe>'


class FoundCircuits:
    """Circuits that a run has found, one a member of its population."""

    def __init__(self, folder: Path, temporary: TemporaryDirectory[str] | None = None) -> None:
        """folder: a finished run. temporary: its folder, where nobody has named one; removed with this object."""
        self.folder = folder
        self._temporary = temporary
        self.circuits = [Circuit.load(path) for path in circuit_files(folder)]
        """All circuits, in the order of the population."""
        self.summary: dict[str, Any] = json.loads(RunDir(folder).summary.read_text(encoding="utf-8"))
        """The content of summary.json: scores of the full model, of the empty circuit and of every member."""

    @property
    def circuit(self) -> Circuit:
        """The circuit. Raises UserError where the run has found several."""
        if len(self.circuits) > 1:
            raise UserError(f"the run has found {len(self.circuits)} circuits; use .circuits, such as .circuits[0]")
        return self.circuits[0]

    @property
    def scores(self) -> Scores:
        """Held-out scores of the circuit: name -> Score. Raises UserError where the run has found several."""
        return self.circuit.scores

    def report(self) -> ReportPage:
        """Return the page of the run; a notebook shows the page. Raises UserError where its libraries are not installed."""
        page = RunDir(self.folder).report
        if not page.exists():
            need("report()", "report")
            from bigcircuit.report.render import render_run  # its figures take a second to load

            render_run(self.folder)
        return ReportPage(page)

    def to_pandas(self) -> Any:
        """Make a DataFrame with a row a circuit: seed, kept nodes and means of the held-out scores. Needs pandas."""
        need("to_pandas", "data", "pandas")
        import pandas

        rows = [
            {"seed": row["seed"], **row["kept"], **{name: score["mean"] for name, score in row["scores"].items()}}
            for row in self.summary["members"]
        ]
        return pandas.DataFrame(rows)

    def save(self, folder: str | Path) -> Path:
        """Copy the run folder to a new one, for a run in a temporary folder. Returns the new one. Raises UserError."""
        target = Path(folder).expanduser()
        if target.exists():
            raise UserError(f"{target}: exists; name a new folder")
        temporary = temporary_path(target)
        with removing(temporary):
            shutil.copytree(self.folder, temporary)
            temporary.rename(target)
        return target

    def __repr__(self) -> str:
        if len(self.circuits) == 1:
            return f"FoundCircuits({self.circuit!r}, folder={str(self.folder)!r})"
        return f"FoundCircuits({len(self.circuits)} circuits, first: {self.circuits[0]!r}, folder={str(self.folder)!r})"

    def _repr_html_(self) -> str:
        return "".join(circuit._repr_html_() for circuit in self.circuits)
