"""Draw the picture of the README from the page of a run: the model with the kept neurons of every head and MLP.

    python -m scripts.report_picture [RUN]          needs the test extras and Chromium

Without RUN the quickstart runs first, in a temporary folder.
"""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from bigcircuit.cli import run_prune

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "docs/images/report.png"
WIDTH, HEIGHT = 980, 900
"""Size of the window in CSS pixels."""


def draw(run: Path, output: Path = OUTPUT) -> None:
    """Write the top of the page of a run folder as a PNG file."""
    with sync_playwright() as api:
        path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        browser = api.chromium.launch(executable_path=path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto((run / "report.html").resolve().as_uri())
        page.locator("#model").screenshot(path=output)
        browser.close()


def main() -> None:
    """Draw a given run, or the quickstart."""
    if sys.argv[1:]:
        return draw(Path(sys.argv[1]))
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "quickstart"
        run_prune(["--config", str(ROOT / "configs/quickstart.yaml"), "--output", str(run)])
        return draw(run)


if __name__ == "__main__":
    main()
