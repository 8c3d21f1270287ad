"""Hooks of pytest that count skips: every run prints how many tests skip and why, and --most-skips bounds them."""

from collections import Counter
from collections.abc import Iterator

import pytest

ALLOWED = (
    "no GPU is here",
    "KUBERAY_CRD names no file",
    "two hosts need",
    "a disk needs",
    "this folder is in memory",
    "trackio is installed",
    "lm-eval is not installed",
)
"""Beginnings of the reasons for which a test may skip under --most-skips: what a complete machine may lack, other than a
browser, the pretrained models in ../shared, hadolint, or packages of the extra `test`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --most-skips."""
    parser.addoption(
        "--most-skips",
        type=int,
        metavar="N",
        help="fail when more than N tests skip, or one for a reason that is not allowed",
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run for its skips; does nothing on the workers of xdist, which know only their own."""
    if session.exitstatus == pytest.ExitCode.OK and any(_complaints(session.config)):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the number of skips, their reasons, and what is wrong with them."""
    reasons = _reasons(config)
    terminalreporter.write_line(f"skipped: {reasons.total()}")
    for reason, times in reasons.most_common():
        terminalreporter.write_line(f"  {times} x {reason}")
    for complaint in _complaints(config):
        terminalreporter.write_line(f"ERROR: {complaint}", red=True)


def _complaints(config: pytest.Config) -> Iterator[str]:
    most, reasons = config.getoption("--most-skips"), _reasons(config)
    if most is None:
        return
    if reasons.total() > most:
        yield f"{reasons.total()} tests skip; --most-skips allows {most}"
    for reason in reasons:
        if not reason.startswith(ALLOWED):
            yield f"no test may skip here because {reason!r} (ALLOWED in tests/helpers/skips.py)"


def _reasons(config: pytest.Config) -> Counter[str]:
    """Count the tests and test files that skip, by reason."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    return Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
