"""A headless Chromium for pages on disk, and records of their errors and requests."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome")
_QUIET = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the browser; skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api")
    path = next((found for name in _NAMES if (found := which(name))), None)
    if path is None:
        pytest.skip(f"no Chromium is here ({', '.join(_NAMES)})")
    with api.sync_playwright() as playwright:
        # Each launch has a user data folder of its own.
        browser = playwright.chromium.launch(executable_path=path, args=_QUIET.split())
        try:
            yield browser
        finally:
            browser.close()


class Opened:
    """An open page, with its console messages, errors and requests."""

    def __init__(
        self, browser: Any, path: Path, *, width: int = 1200, scheme: str = "light", script: bool = True
    ) -> None:
        self.complaints: list[str] = []
        self.requests: list[str] = []
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=script
        )
        self.page = context.new_page()
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.resolve().as_uri())
        self.own = path.resolve().as_uri()

    def assert_quiet(self) -> None:
        """Check that there was no message, no error and no request besides the page itself."""
        assert self.complaints == []
        away = [url for url in self.requests if url.partition("#")[0] != self.own and not url.startswith("data:")]
        assert away == []

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than the window."""
        return self.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


CONTRAST = Path(__file__).with_name("contrast.js").read_text(encoding="utf-8")
"""Script that evaluates to the texts of a page that have too little contrast."""
