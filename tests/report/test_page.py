"""report.html is safe to open, small, the same from the same files, and can be read by everybody."""

import base64
import hashlib
import html
import json
import re
import shutil

import pytest
import torch
from PIL import Image

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.cli import answer, run_report
from bigcircuit.report.page import visible_text
from bigcircuit.report.render import render_run, write_report
from tests.helpers.browser import CONTRAST, Opened
from tests.helpers.short_reports import circuit_of, expected, listed

HOSTILE = (
    "<script>window.hacked=1;alert(1)</script> \"'><img src=x onerror=window.hacked=1> שלום עולם 👩‍🔬 " + "x" * 3000
)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_the_button_and_can_be_read(browser, reported, scheme):
    for path in (reported.one.report, reported.many.report, reported.pair):
        opened = Opened(browser, path, scheme=scheme)
        page = opened.page
        paper = "getComputedStyle(document.body).backgroundColor"
        before = page.evaluate(paper)
        assert before == {"light": "rgb(255, 255, 255)", "dark": "rgb(19, 22, 27)"}[scheme]
        page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert page.evaluate(CONTRAST) == []
        page.locator("#theme").click()
        assert page.evaluate(paper) != before
        assert page.evaluate(CONTRAST) == []
        opened.assert_quiet()


def test_a_phone_scrolls_in_one_direction(browser, reported):
    for path in (reported.one.report, reported.many.report, reported.pair):
        opened = Opened(browser, path, width=380)
        opened.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert opened.overflow() <= 0
        opened.assert_quiet()


def test_text_is_never_markup(browser, reported, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(reported.one.path, folder)
    shown = json.loads((folder / "examples.json").read_text())
    shown["members"][0][0] |= {"prompt": HOSTILE, "corrupted": HOSTILE}
    shown["members"][0][0]["full"][0]["token"] = "</bdi><script>window.hacked=1</script>"
    (folder / "examples.json").write_text(json.dumps(shown))
    for name in ("summary.json", "config.json", "evaluation.json"):
        content = json.loads((folder / name).read_text())
        if name == "summary.json":
            content |= {"task": HOSTILE[:60], "model": HOSTILE[:60]}
        elif name == "config.json":
            content["config"]["output"] = HOSTILE
        else:
            content = json.loads(json.dumps(content).replace('"one"', json.dumps(HOSTILE)))  # the name of a circuit
            content["verdict"] = HOSTILE
            for curve in content["curves"]["zero"]:
                curve["method"] = HOSTILE[:100]
        (folder / name).write_text(json.dumps(content))
    opened = Opened(browser, render_run(folder), width=380)
    page = opened.page
    assert page.locator(".prompt").first.text_content() == HOSTILE
    assert page.locator(".prompt").first.get_attribute("dir") == "auto"
    assert page.locator(".answers bdi").first.text_content() == "</bdi><script>window.hacked=1</script>"
    assert page.locator("#asked dd").nth(1).text_content() == HOSTILE[:60]
    assert page.evaluate("window.hacked") is None
    assert opened.overflow() <= 0
    opened.assert_quiet()


@pytest.mark.parametrize(
    ("token", "seen"),
    [(" ", "␣"), ("  ", "␣␣"), ("\n\n", "↵↵"), (" \t", "␣⇥"), ("\u00a0", "⍽"), ("\u200b", "U+200B"), ("", "∅"), ("\r", "U+000D"),
     ("\u3000", "U+3000"), (" he", " he"), ("a\u00a0b", "a⍽b"), ("né", "né")],
)  # fmt: skip
def test_a_token_without_ink_can_be_seen(token, seen):
    assert visible_text(token) == seen


def test_nothing_may_leave_the_page(browser, reported):
    text = reported.one.report.read_text()
    script = text[text.rindex("<script>") + 8 : text.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    policy = html.unescape(policy)
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}';" in policy
    page = Opened(browser, reported.one.report).page
    refused = page.evaluate(
        """async () => {
          const found = [];
          document.addEventListener("securitypolicyviolation", event => found.push(event.effectiveDirective));
          const script = document.createElement("script"); script.textContent = "window.hacked = 1"; document.body.append(script);
          const image = new Image(); image.src = "http://127.0.0.1:9/x.png"; document.body.append(image);
          await fetch("http://127.0.0.1:9/").catch(() => null);
          await new Promise(done => setTimeout(done, 50));
          return found;
        }"""
    )
    assert sorted(refused) == ["connect-src", "img-src", "script-src-elem"]
    assert page.evaluate("window.hacked") is None


def test_a_model_of_8b_fits_on_a_small_page(browser, tmp_path):
    generator = torch.Generator().manual_seed(0)
    layers, heads, dimension, ffn = 32, 32, 128, 14336
    attention = torch.rand(layers, heads * dimension, generator=generator) < 0.05
    mlp = torch.rand(layers, ffn, generator=generator) < 0.15
    by_head = attention.view(layers, heads, dimension).any(-1)
    masks = {
        "block": (attention.any(1) | mlp.any(1)).unsqueeze(1),
        "attention": attention.any(1, keepdim=True),
        "mlp": mlp.any(1, keepdim=True),
        "kv_group": by_head.view(layers, 8, 4).any(-1),
        "head": by_head,
        "attention_neuron": attention,
        "mlp_neuron": mlp,
    }
    path = tmp_path / "large.safetensors"
    widths = {name: [mask.shape[1]] * layers for name, mask in masks.items()}
    Circuit(masks, {}, {"model": "large", "task": "a task", "ablation": "zero", "widths": json.dumps(widths)}).save(
        path
    )
    (written,) = write_report([str(path)])
    assert written == tmp_path / "large.html"
    assert written.stat().st_size < 1_000_000
    opened = Opened(browser, written, width=380)
    assert opened.page.locator("details.layer").count() == layers
    assert opened.page.locator(".heads .node").count() == layers * heads
    for texts, names in zip(listed(opened.page, 31), expected(masks, 31), strict=True):
        assert texts[0].split(", ") == names
    assert opened.overflow() <= 0
    opened.assert_quiet()


def test_figures_are_files_for_papers(reported, tmp_path, capsys):
    assert (
        answer(
            run_report,
            [str(reported.one.path), "--output", str(tmp_path / "page.html"), "--figures", str(tmp_path / "f")],
        )
        == 0
    )
    written = capsys.readouterr().out.split()
    assert str(tmp_path / "page.html") in written
    names = {path.stem for path in (tmp_path / "f").iterdir()}
    assert {"training_kl", "training_size", "size_neuron_zero", "partial_zero", "model_one", "neurons_one"} <= names
    for name in names:
        assert (tmp_path / f"f/{name}.pdf").read_bytes().startswith(b"%PDF")
        with Image.open(tmp_path / f"f/{name}.png") as image:
            assert max(image.size) > 600
            dark, light = image.convert("L").getextrema()
            assert (dark < 130, light) == (True, 255)
    svg = (tmp_path / "f/size_neuron_zero.svg").read_text()
    assert ">held-out KL, nats</text>" in svg, "text stays text"
    assert "var(--" not in svg, "the page's colours are the page's"


def test_a_page_that_is_passed_on_names_no_folder_of_this_machine(reported, swept, tmp_path):
    """Runs, sweep and evaluation have absolute paths as output, in their commands and as names of circuit files."""
    rendered = write_report([str(swept)], tmp_path / "sweep.html") + [
        reported.one.report,
        reported.many.report,
        reported.pair,
    ]
    for page in rendered:
        text = page.read_text()
        assert str(reported.one.path.parent) not in text and str(swept.parent) not in text, page
    assert '"output": "…/one"' in html.unescape(reported.one.report.read_text())


def test_a_foreign_evaluation_names_no_file(reported, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(reported.one.path, folder)
    known = (folder / "evaluation.json").read_text()
    for old, new in (('"zero":', '"../../../escaped":'), ('"level": "neuron"', '"level": "../x"')):
        assert old in known
        (folder / "evaluation.json").write_text(known.replace(old, new))
        assert answer(run_report, [str(folder), "--figures", str(tmp_path / "a/b/c")]) == 2
        said = capsys.readouterr().err
        assert re.search(r"evaluation\.json: names the (ablation|level) '\.\./.*', which is not known here", said), said
    assert not (tmp_path / "a").exists() and not list(tmp_path.glob("*escaped*"))


def test_the_same_files_give_the_same_page(reported, tmp_path):
    pages = [write_report([str(reported.one.path)], tmp_path / f"{index}.html")[0].read_bytes() for index in range(2)]
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "report needs a run folder or a circuit file"),
        (["RUN", "--colour", "red"], "report has no option --colour"),
        (["RUN", "--output", "page.pdf"], "--output page.pdf: a page is HTML; name it page.html, or give --figures"),
        (["RUN", "RUN"], "is named twice; name each circuit once"),
        (["ABSENT"], "no such circuit file"),
        (["EMPTY"], "has no summary.json, so no finished run"),
        (["DAMAGED"], "summary.json: not readable as JSON"),
    ],
)
def test_mistakes_are_one_line(words, reason, reported, tmp_path, capsys):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "DAMAGED").mkdir()
    (tmp_path / "DAMAGED/summary.json").write_text("{")
    places = {"RUN": reported.one.path, **{name: tmp_path / name for name in ("ABSENT", "EMPTY", "DAMAGED")}}
    assert answer(run_report, [str(places.get(word, word)) for word in words]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_a_page_replaces_pages_alone(reported, tmp_path, capsys):
    """A name typed wrong costs no config.json, no circuit and no file of the user's."""
    run = shutil.copytree(reported.one.path, tmp_path / "run")
    (tmp_path / "notes.txt").write_text("mine")
    kept = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    circuit = run / "circuit.safetensors"
    for source, output in (
        (run, run / "config.json"),
        (circuit, circuit),
        (run, tmp_path / "notes.txt"),
        (run, tmp_path),
    ):
        assert answer(run_report, [str(source), "--output", str(output)]) == 2
        error = capsys.readouterr().err
        assert f"--output {output}: is a f" in error and error.count("\n") == 1
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == kept
    for _ in range(2):  # a page gives way to a page
        assert answer(run_report, [str(circuit), "--output", str(tmp_path / "page.html")]) == 0


def test_the_page_goes_from_the_drawing_to_heads_what_they_do_and_code_before_prompts_and_scores(
    browser, reported, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(reported.one.path, folder)
    content = json.loads((folder / "evaluation.json").read_text())
    neuron = {"name": "L0MLP.3", "raises": [" Anna"], "lowers": [" iron"]}
    head = {"name": "L0H1", "weights": [0.1, 0.9]}
    content["inside"] = {
        name: {"tokens": ["<s>", " Mary"], "heads": [head], "neurons": [neuron]} for name in ("a", "b")
    }
    (folder / "evaluation.json").write_text(json.dumps(content))
    page = Opened(browser, render_run(folder)).page
    names = (
        "#shown",
        "[aria-label='Kept heads']",
        ".looks",
        "[aria-label='Tokens of neurons']",
        "pre.copy",
        ".prompts",
        "#scores",
    )
    tops = [page.locator(name).first.bounding_box()["y"] for name in names]
    assert tops == sorted(tops)
    assert page.get_by_text("What the most needed nodes do in a").is_visible()
    assert not page.get_by_text("What the most needed nodes do in b").is_visible()
    page.get_by_text("Most needed nodes of 1 more circuit").click()
    assert page.get_by_text("What the most needed nodes do in b").is_visible()


def test_a_table_of_sixteen_heads_is_shown_whole_and_a_longer_one_shows_that_it_goes_on(browser, reported):
    box = Opened(browser, reported.one.report).page.locator("[aria-label='Kept heads']")
    rows = """(box, count) => {
        const body = box.querySelector("tbody"), row = body.rows[0]
        body.replaceChildren(...Array.from({length: count}, () => row.cloneNode(true)))
        return [box.scrollHeight > box.clientHeight, getComputedStyle(box).backgroundImage.split("linear-gradient").length - 1]
    }"""
    assert box.evaluate(rows, 16)[0] is False
    assert box.evaluate(rows, 64) == [True, 4]  # two gradients show more at the side, two below


def test_the_first_screens_tell_which_heads_and_open_the_circuit(browser, reported):
    opened = Opened(browser, reported.one.report, width=360)
    page, kept = opened.page, circuit_of(reported.one.path / "circuit.safetensors")["head"]
    names = page.locator("[aria-label='Kept heads'] tbody th").all_text_contents()
    layer, head = re.fullmatch(r"L(\d+)H(\d+)", names[0]).groups()
    assert page.get_by_text(f"{len(names)} kept, {names[0]} is head {head} of layer {layer}").is_visible()
    assert sorted(names) == sorted(f"L{layer}H{head}" for layer, head in kept.nonzero().tolist())
    page.locator("[aria-label='Kept heads'] thead button").first.click()
    names = page.locator("[aria-label='Kept heads'] tbody th").all_text_contents()
    assert names == [f"L{layer}H{head}" for layer, head in kept.nonzero().tolist()]
    box = page.locator("[aria-label='Kept heads']")
    assert box.evaluate("box => box.scrollWidth <= box.clientWidth")  # nothing is cut on a phone
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    snippet = page.locator("pre.copy").text_content()
    assert "bigcircuit.Circuit.load(" in snippet and "circuit.applied(model, corrupted_ids=" in snippet
    compile(snippet, "snippet", "exec")
    signs = page.locator(".checks li").all_text_contents()
    assert [text[0] in "✓~✗?" for text in signs] == [True] * 4 and "faithful" in signs[0]
    assert not page.locator("#settings .facts").first.is_visible()  # folded
    opened.assert_quiet()
