"""The page at the end of a run, an evaluation or a comparison: written where the extra `report` is installed."""

from pathlib import Path

from bigcircuit.config.extras import install_command, missing
from bigcircuit.errors import ReportedError, first_line
from bigcircuit.io.files import Json


def write_run_page(folder: Path, summary: Json | None = None) -> str:
    """Write report.html of a folder, see `render_run`. Returns one line: where the page is, or how to get one."""
    if absent := missing("report"):
        return f"no page without {', '.join(absent)}: {install_command('report')}, then bigcircuit report {folder}"
    from bigcircuit.report.render import render_run  # its figures take a second to load

    try:
        return f"see {render_run(folder, summary)}"
    except ReportedError:  # such as of a full disk
        raise
    except Exception as error:  # of figures and templates: the numbers are there, and they are the result
        what = f"{type(error).__name__}: {first_line(error)}"
        return f"no page: drawing it failed ({what[:200]}); `bigcircuit report {folder}` tries again, please report what it prints"
