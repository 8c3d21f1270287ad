"""report.html of a sweep in a real browser: whatever trial is chosen, it shows what that trial has found."""

import json
import re
import shutil

import pytest
import yaml

from bigcircuit.config.load import parse_section
from bigcircuit.report import page_content
from bigcircuit.report.sweep_outputs import write_sweep_outputs
from bigcircuit.results.sweep import read_sweep
from tests.helpers.browser import CONTRAST, Opened
from tests.helpers.short_reports import circuit_of, expected, listed
from tests.helpers.sweep_dir import OTHERS, TRIALS, trial_folder

MARKS = "figure[data-chart=trials] .of-member"


@pytest.fixture(scope="module")
def front(swept):
    """Numbers of the trials on the front, the smallest first."""
    return [trial.number for trial in read_sweep(swept).front]


def shown(page):
    return page.locator(".circuit:visible").get_attribute("id")


def mark(page, number):
    return page.locator(f"{MARKS}[data-member='{number}'] a")


def test_every_trial_with_a_place_is_a_point_and_the_best_is_open(browser, swept, front):
    opened = Opened(browser, swept / "report.html")
    page = opened.page
    tips = {m.get_attribute("data-member"): m.locator("title").text_content() for m in page.locator(MARKS).all()}
    assert set(tips) == {*map(str, range(len(TRIALS))), "5"}, "one failed and one waits before their first validation"
    for trial in read_sweep(swept).finished:
        size, kl = trial.point
        assert tips[str(trial.number)] == f"trial {trial.number}: {size:,} neurons, KL {kl:.3g}"
    assert tips["5"] == "trial 5: 700 neurons, KL 0.5 (stopped, validation)"
    chips = [f"trial {number}" for number in front]
    assert [c.get_attribute("aria-label") for c in page.locator(".pick a").all()] == [*chips, None]
    good = [trial.number for trial in read_sweep(swept).front if trial.point[1] <= 0.1]
    assert shown(page) == f"trial-{good[0]}"
    opened.assert_quiet()


@pytest.mark.parametrize("width", [1200, 390])
def test_a_click_on_a_point_shows_its_circuit_settings_and_scores(browser, swept, front, width):
    opened = Opened(browser, swept / "report.html", width=width)
    page = opened.page
    for number in reversed(front):
        mark(page, number).click()
        assert shown(page) == f"trial-{number}"
        panel, found = page.locator(f"#trial-{number}"), json.loads(trial_folder(swept, number).summary.read_text())
        assert panel.locator("h3").first.bounding_box()["y"] < 700, "it is in sight"
        for layer, texts in ((layer, listed(page, layer)) for layer in range(4)):
            names = expected(circuit_of(swept / f"circuits/{number:03d}.safetensors"), layer)
            assert [t[0].split(", ") if t else [] for t in texts] == names
        facts = dict(zip(panel.locator("dt").all_text_contents(), panel.locator("dd").all_text_contents(), strict=True))
        for key, value in TRIALS[number].items():
            assert float(facts[key]) == value
        kept = found["members"][0]["kept"]
        assert facts["heads"] == f"{kept['head']} of 32" and facts["all neurons"] == f"{kept['total']:,} of 1,792"
        kl, logits = (
            panel.locator("tbody tr", has_text=name).locator("td") for name in ("KL, nats", "logit difference")
        )
        assert float(kl.nth(0).inner_text().split()[0]) == pytest.approx(
            found["members"][0]["scores"]["kl"]["mean"], rel=0.05, abs=5e-4
        )
        assert logits.nth(1).text_content() == f"{found['full']['logit_difference']['mean']:.3f}"
        config = parse_section(yaml.safe_load(panel.locator("pre.whole").text_content()), "the page")
        own = json.loads(trial_folder(swept, number).config.read_text())["config"]
        assert config.train.model_dump(mode="json") == own["train"]
        assert config.target.model_dump(mode="json") == own["target"]
    assert opened.overflow() <= 0
    opened.assert_quiet()


def test_keyboard_nearby_clicks_chips_table_and_history_choose_too(browser, swept, front):
    opened = Opened(browser, swept / "report.html")
    page, (one, other, *_) = opened.page, front
    mark(page, one).focus()
    assert page.locator("figure[data-chart=trials] output").text_content().startswith(f"trial {one}: ")
    page.keyboard.press("Enter")
    assert shown(page) == f"trial-{one}"
    box = mark(page, other).bounding_box()
    near = box["x"] + box["width"] / 2 - 15, box["y"] + box["height"] / 2
    page.mouse.move(*near)
    assert page.locator("figure[data-chart=trials] output").text_content().startswith(f"trial {other}: ")
    page.mouse.click(*near)
    assert shown(page) == f"trial-{other}"
    page.go_back()
    assert shown(page) == f"trial-{one}"
    page.locator(".pick a", has_text="all together").click()
    assert shown(page) == "together"
    page.locator("#table tbody a", has_text=re.compile("^6$")).click()
    assert shown(page) == "trial-6" and page.locator("#trial-6 .failed").text_content() == "ask for fewer"
    assert page.locator("#trial-6 h3").is_visible() and page.locator("tr.picked").get_attribute("data-member") == "6"
    assert 0 <= page.locator("#trial-6 h3").bounding_box()["y"] < 800, "the page has gone back up to it"
    page.locator("figure[data-chart='setting_train.lr'] .of-member a").first.click()
    assert shown(page) == "trial-0"
    opened.assert_quiet()


def test_where_points_overlap_a_click_opens_what_was_named(browser, swept):
    opened = Opened(browser, swept / "report.html")
    page, figure = opened.page, opened.page.locator("figure[data-chart=trials]")
    # Every mark lies above those before it; each is put almost on the one before it, and pointed at in its middle.
    page.evaluate(f"""() => [...document.querySelectorAll("{MARKS} use")].forEach((mark, index) => {{
      mark.setAttribute("x", 100 + 1.5 * index); mark.setAttribute("y", 100);
    }})""")
    middles = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
               for box in (one.bounding_box() for one in page.locator(f"{MARKS} use").all())]  # fmt: skip
    chosen = set()
    for middle in middles:
        page.mouse.move(*middle)
        named = figure.locator("output").text_content().partition(":")[0]
        page.mouse.click(*middle)
        assert shown(page) == named.replace(" ", "-")
        chosen.add(named)
    assert len(chosen) == len(middles)
    opened.assert_quiet()


def test_trials_without_a_drawing_say_why(browser, swept, front):
    page = Opened(browser, swept / "report.html").page
    (beaten, *_) = [number for number in range(len(TRIALS)) if number not in front]
    mark(page, beaten).click()
    panel = page.locator(f"#trial-{beaten}")
    assert panel.locator(".model").count() == 0
    assert f"bigcircuit report {trial_folder(swept, beaten).path.relative_to(swept.parent)}" in panel.text_content()
    better = panel.locator("a[href^='#trial-']")
    assert better.text_content() in {f"trial {number}" for number in front}
    better.click()
    assert shown(page) == "trial-" + better.get_attribute("href").removeprefix("#trial-")
    mark(page, 5).click()
    text = page.locator("#trial-5").text_content()
    assert "stopped, 2 of 4 steps" in text and "Its last validation: 700 neurons, KL 0.500" in text


def test_the_table_has_all_trials_with_status_and_errors(browser, swept):
    page = Opened(browser, swept / "report.html").page
    rows = page.locator("#table tbody tr")
    assert rows.count() == len(TRIALS) + len(OTHERS)
    cells = [[cell.text_content() for cell in row.locator("td").all()] for row in rows.all()]
    assert cells[6][:7] == ["failedask for fewer", "–", "–", "–", "0.1", "0", "5000"]
    assert cells[5][:4] == ["stopped", "(700)", "(20)", "(0.500)"]
    headings = " ".join(page.locator("#table thead th").all_text_contents())
    assert "exact match" in headings and "perplexity" not in headings, "a column has a score that some trial has"
    page.locator("#table thead button", has_text="neurons").first.click()
    sizes = [int(c.get_attribute("data-value")) for c in page.locator("#table tbody td:nth-child(3)").all()[-6:]]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_and_phones(browser, swept, scheme):
    for width in (1200, 380):
        opened = Opened(browser, swept / "report.html", scheme=scheme, width=width)
        page = opened.page
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        page.locator(".pick a").first.click()
        assert page.evaluate(CONTRAST) == []
        assert opened.overflow() <= 0
        opened.assert_quiet()


def test_without_a_script_everything_is_there(browser, swept):
    page = Opened(browser, swept / "report.html", script=False).page
    assert [one.is_visible() for one in page.locator(".circuit").all()] == [True] * (len(TRIALS) + len(OTHERS) + 1)


def test_text_is_never_markup_and_drawings_keep_to_a_budget(browser, swept, front, tmp_path, monkeypatch):
    shutil.copytree(swept, tmp_path / "s")
    hostile = "<script>window.hacked=1</script>\"'<img src=x onerror=window.hacked=1>" + "x" * 300
    record = json.loads((tmp_path / "s/trials/006/trial.json").read_text()) | {"error": hostile}
    record["settings"]["train.lr"] = hostile
    (tmp_path / "s/trials/006/trial.json").write_text(json.dumps(record))
    monkeypatch.setattr(page_content, "BUDGET", 1)
    write_sweep_outputs(tmp_path / "s")
    opened = Opened(browser, tmp_path / "s/report.html", width=380)
    page = opened.page
    assert page.locator("#trial-6 .failed").text_content() == hostile
    assert page.evaluate("window.hacked") is None
    assert page.locator(".circuit .model").count() == 2, "the first one, and all together"
    assert page.get_by_text("Not drawn here, as the page would grow large").count() == len(front) - 1
    page.locator("#table tbody a", has_text=re.compile("^6$")).click()
    assert opened.overflow() <= 0
    opened.assert_quiet()
