"""Write the pages of runs, circuits and sweeps from their files."""

from collections.abc import Sequence
from pathlib import Path

from bigcircuit.errors import UserError
from bigcircuit.io.files import Json
from bigcircuit.report import charts, page_content
from bigcircuit.report.page import write_page
from bigcircuit.report.svg import write_figures
from bigcircuit.report.sweep_page import render_sweep
from bigcircuit.results.locate import check_named_once
from bigcircuit.results.run import open_source
from bigcircuit.results.sweep import is_sweep, read_sweep


def render_run(folder: Path, summary: Json | None = None) -> Path:
    """Write report.html of a run folder, or of a folder with an evaluation or a comparison; return its path.

    summary: content of summary.json where the file is not written yet. Raises UserError naming the file that is missing or
    damaged.
    """
    return write_page("page.html", page_content.page_content([open_source(folder, summary)]), folder / "report.html")


def write_report(names: Sequence[str], output: Path | None = None, figures: Path | None = None) -> list[Path]:
    """Write the page of one run, sweep or circuit file, or of several beside each other (verb `report`); return the paths.

    figures: folder for all figures of the page as SVG, PNG and PDF. Raises UserError.
    """
    if not names:
        raise UserError("report needs a run folder or a circuit file: bigcircuit report runs/quickstart")
    paths = [Path(name) for name in names]
    first = paths[0]
    if output is None:
        alone = first / "report.html" if first.is_dir() else first.with_suffix(".html")
        output = Path("comparison.html") if len(names) > 1 else alone
    _check_output(output)
    if sweeps := [path for path in paths if is_sweep(path)]:
        if len(paths) > 1:
            raise UserError(f"{sweeps[0]}: a sweep has a page of its own; name it alone, or its circuits/*.safetensors")
        return render_sweep(read_sweep(paths[0]), output, figures)
    check_named_once(paths)
    sources = [open_source(path) for path in paths]
    page = page_content.page_content(sources)
    written = [write_page("page.html", page, output)]
    if figures is not None:
        written += write_figures([*page.all_charts(), *charts.map_charts(page.drawings())], figures)
    return written


def _check_output(output: Path) -> None:
    """Raise UserError if the page would replace a folder, or a file that is no page."""
    if output.is_dir():
        raise UserError(f"--output {output}: is a folder; name a file such as {output / 'report.html'}")
    if output.exists() and not output.read_bytes()[:1024].lstrip().lower().startswith(b"<!doctype html"):
        raise UserError(f"--output {output}: is a file and no page; name another")
    if output.suffix.lower() not in ("", ".html", ".htm"):
        raise UserError(
            f"--output {output}: a page is HTML; name it {output.with_suffix('.html')}, or give --figures for files"
        )
