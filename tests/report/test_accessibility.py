"""axe-core, the engine of Lighthouse, finds no fault in any page: contrast, labels, roles, headings."""

import pytest

from tests.helpers.browser import Opened

PAGES = ("run", "population", "comparison", "sweep")


@pytest.fixture(scope="module")
def pages(reported, swept):
    """File of each page."""
    found = (reported.one.report, reported.many.report, reported.pair, swept / "report.html")
    return dict(zip(PAGES, found, strict=True))


def faults(page) -> list[str]:
    """Run axe-core on a page: rule, target and message of each element that fails."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [
        f"{rule['id']}: {' '.join(map(str, element['target']))}: {element['failureSummary']}"
        for rule in found
        for element in rule["nodes"]
    ]


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_fault(browser, pages, name, width, scheme):
    opened = Opened(browser, pages[name], width=width, scheme=scheme)
    assert faults(opened.page) == [], "as the page opens"
    opened.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert faults(opened.page) == [], "with everything unfolded"
    assert opened.overflow() <= 0
