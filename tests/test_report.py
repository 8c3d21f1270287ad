"""report.html in a real browser: what it shows is what was found, it is safe to open, and it can be read by everybody."""

import base64
import hashlib
import io
import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from rich.console import Console

from bigcircuit.ablated import INTERCHANGE
from bigcircuit.circuit import Circuit
from bigcircuit.cli import answer, run_report
from bigcircuit.compare import compare
from bigcircuit.config_file import load
from bigcircuit.distributed import Ranks
from bigcircuit.evaluation.evaluate import evaluate
from bigcircuit.evaluation.examples import predictions
from bigcircuit.evaluation.settings import ComparisonSettings, EvaluationSettings
from bigcircuit.report import render, report, views
from bigcircuit.streams import Streams
from bigcircuit.tasks.data import load_task
from tests.browser import CONTRAST, Opened, chromium
from tests.runs import run

HOSTILE = (
    "<script>window.hacked=1;alert(1)</script> \"'><img src=x onerror=window.hacked=1> שלום עולם 👩‍🔬 " + "x" * 3000
)


@pytest.fixture(scope="module")
def browser():
    """One Chromium for all tests of this file."""
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """An evaluated run of one circuit, a population of other sizes, and the comparison of two of its members."""
    base = tmp_path_factory.mktemp("report")
    one = run(base / "one", task__size=40, train__steps=6)
    settings = EvaluationSettings(
        draws=4, groups=4, fractions=(0.5,), partial_draws=1, ablations=("interchange", "zero")
    )
    evaluate([str(one.path)], settings, Ranks())
    sizes = [{"target.total": size} for size in (300, 150, 220)]
    many = run(base / "many", task__size=40, train__steps=6, population__members=sizes)
    pair = [many.path / f"circuits/{index}.safetensors" for index in (0, 1)]
    report([str(path) for path in pair], base / "pair.html")
    return SimpleNamespace(one=one, many=many, pair=base / "pair.html", pair_files=pair)


def circuit_of(path):
    return Circuit.load(path).masks


def listed(page, layer, inside=".circuit.on"):
    """Open a layer and read the lists of neurons that the page makes from its images: what -> [text of each category]."""
    details = page.locator(f"{inside} details.layer[data-layer='{layer}']")
    details.locator("summary").first.click()
    boxes = details.locator(".inside > div").all()
    details.locator("details.list").nth(len(boxes) - 1).wait_for()
    return [box.locator("details.list p").all_text_contents() for box in boxes]


def expected(masks, layer):
    """Neurons as the page names them, from the circuit file."""
    dimensions = masks["attention_neuron"].shape[1] // masks["head"].shape[1]
    attention = masks["attention_neuron"][layer].nonzero().flatten().tolist()
    return [
        [f"{n // dimensions}.{n % dimensions}" for n in attention],
        [str(n) for n in masks["mlp_neuron"][layer].nonzero().flatten().tolist()],
    ]


def test_layers_open_down_to_the_neurons_of_the_circuit_file(browser, runs):
    masks = circuit_of(runs.one.path / "circuit.safetensors")
    opened = Opened(browser, runs.one.report)
    page = opened.page
    for layer in range(len(masks["head"])):
        for texts, names in zip(listed(page, layer), expected(masks, layer), strict=True):
            assert (texts[0].split(", ") if texts else []) == names
    said = page.locator("details.layer[data-layer='0'] > summary").get_attribute("aria-label")
    assert f"{int(masks['head'][0].sum())} of 8 heads" in said
    assert page.locator(".node[style*='--k']").count() == int(masks["head"].sum() + masks["mlp"].sum())
    opened.assert_quiet()


def test_pointing_at_a_neuron_names_it(browser, runs):
    masks = circuit_of(runs.one.path / "circuit.safetensors")
    layer = int(masks["mlp"].flatten().nonzero()[0])
    neuron = int(masks["mlp_neuron"][layer].nonzero()[0])
    page = Opened(browser, runs.one.report).page
    listed(page, layer)
    box = page.locator(f"details.layer[data-layer='{layer}'] .pixels[data-what='MLP neuron']")
    place = box.bounding_box()
    columns, rows = (int(box.get_attribute(f"data-{name}")) for name in ("columns", "rows"))
    x, y = (neuron % columns + 0.5) / columns * place["width"], (neuron // columns + 0.5) / rows * place["height"]
    box.hover(position={"x": x, "y": y})
    assert page.locator("output", has_text="MLP").text_content() == f"MLP neuron {layer}.{neuron}: kept"


def test_layers_open_by_keyboard_and_without_a_script(browser, runs):
    page = Opened(browser, runs.one.report, script=False).page
    layer = page.locator("details.layer").first
    layer.locator("summary").focus()
    page.keyboard.press("Enter")
    image = layer.locator("img").first
    assert image.is_visible()
    assert re.fullmatch(r"head: \d+ of 128 kept", image.get_attribute("alt"))
    everything = Opened(browser, runs.many.report, script=False).page
    assert [one.is_visible() for one in everything.locator(".circuit").all()] == [True] * 4
    assert not everything.locator("#theme").is_visible()


def test_members_are_switched_by_chip_table_and_mark(browser, runs):
    opened = Opened(browser, runs.many.report)
    page = opened.page
    summary = json.loads(runs.many.summary.read_text())

    def shown():
        return page.locator(".circuit:visible").get_attribute("id"), page.locator(
            ".pick [aria-current]"
        ).all_text_contents()

    assert shown() == ("all", ["all together"])
    page.locator(".pick a", has_text="member 1").click()
    assert shown() == ("member-1", ["member 1"])
    texts = listed(page, 1)
    names = expected(circuit_of(runs.many.path / "circuits/1.safetensors"), 1)
    assert texts[0] == [", ".join(names[0])]
    page.locator("#circuits tbody a", has_text="2").click()
    assert shown()[0] == "member-2"
    assert page.locator("tr.picked").get_attribute("data-member") == "2"
    marks = page.locator("figure[data-chart=size_kl] .of-member")
    assert [mark.locator("title").text_content() for mark in marks.all()] == [
        f"member {row['member']}: {row['kept']['total']} neurons, KL {row['scores']['kl']['mean']:.3f}"
        for row in summary["members"]
    ]
    marks.nth(0).locator("a").click()
    assert shown()[0] == "member-0"
    page.go_back()
    assert shown()[0] == "member-2"
    opened.assert_quiet()


def test_table_is_sorted_by_its_headings(browser, runs):
    page = Opened(browser, runs.many.report).page
    summary = json.loads(runs.many.summary.read_text())
    by_size = [str(row["member"]) for row in sorted(summary["members"], key=lambda row: row["kept"]["total"])]
    heading = page.locator("#circuits thead th", has_text=re.compile("^neurons"))
    for expected_order, direction in ((by_size, "ascending"), (by_size[::-1], "descending")):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == direction
        assert page.locator("#circuits tbody th").all_text_contents() == expected_order
    page.locator("#circuits thead button", has_text="KL").press("Enter")
    by_kl = sorted(summary["members"], key=lambda row: row["scores"]["kl"]["mean"])
    assert page.locator("#circuits tbody th").all_text_contents() == [str(row["member"]) for row in by_kl]


def test_two_circuits_are_drawn_over_each_other(browser, runs):
    first, second = (circuit_of(path) for path in runs.pair_files)
    opened = Opened(browser, runs.pair)
    counted = {"in both": 0, "only in many/0": 0, "only in many/1": 0}
    for layer in range(len(first["head"])):
        for texts in listed(opened.page, layer):
            for text in texts:
                label, count = re.match(r"(.*?) \((\d+)\)", text).groups()
                counted[label] += int(count)
    leaves = ("attention_neuron", "mlp_neuron")
    assert counted == {
        "in both": sum(int((first[name] & second[name]).sum()) for name in leaves),
        "only in many/0": sum(int((first[name] & ~second[name]).sum()) for name in leaves),
        "only in many/1": sum(int((second[name] & ~first[name]).sum()) for name in leaves),
    }
    heads = opened.page.locator("#overlap tbody tr", has_text=re.compile("^heads")).locator("td").all_text_contents()
    both, either = int((first["head"] & second["head"]).sum()), int((first["head"] | second["head"]).sum())
    assert heads[2:5] == [str(both), str(either), f"{both / either:.3f}"]
    opened.assert_quiet()


def test_a_run_that_was_compared_shows_with_what(browser, runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs.one.path, folder)
    compare([str(folder), str(runs.pair_files[0])], ComparisonSettings(), Console(file=io.StringIO()))
    opened = Opened(browser, folder / "report.html")
    assert opened.page.locator(".pick a").all_text_contents() == ["run", "compared"]
    opened.page.locator(".pick a").nth(1).click()
    assert "only in many/0" in opened.page.locator("#compared .legend").text_content()
    verdict = json.loads((folder / "comparison.json").read_text())["verdict"]
    assert opened.page.locator("#overlap p").first.text_content() == verdict
    opened.assert_quiet()


def test_circuits_beyond_the_budget_of_a_page_are_in_its_table(browser, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(views, "_BUDGET", 1)
    (path,) = report([str(runs.many.path)], tmp_path / "page.html")
    page = Opened(browser, path).page
    assert page.locator(".pick a").all_text_contents() == ["all together", "member 0"]
    assert page.get_by_text("2 more circuits are in the table below").is_visible()
    assert page.locator("#circuits tbody tr").count() == 3
    assert page.locator("#circuits tbody a").count() == 1


def test_outputs_of_mlps_are_drawn_where_they_have_masks(browser, runs, tmp_path):
    circuit = Circuit.load(runs.pair_files[0])
    outputs = torch.zeros(4, 64, dtype=torch.bool)
    outputs[2, [3, 40]] = True
    widths = json.loads(circuit.metadata["widths"]) | {"mlp_output": [64] * 4}
    metadata = {**circuit.metadata, "widths": json.dumps(widths)}
    Circuit({**circuit.masks, "mlp_output": outputs}, {}, metadata).save(tmp_path / "c.safetensors")
    (path,) = report([str(tmp_path / "c.safetensors")])
    page = Opened(browser, path).page
    assert listed(page, 2, ".circuit")[2] == ["3, 40"]


def test_page_shows_the_evaluation(browser, runs):
    found = json.loads((runs.one.path / "evaluation.json").read_text())
    page = Opened(browser, runs.one.report).page
    under = found["circuits"][0]["ablations"]["zero"]
    table = page.locator(".box[aria-label='Scores, Zero ablation']")
    rows = {
        row.locator("th").text_content(): row.locator("td").first.text_content()
        for row in table.locator("tbody tr").all()
    }
    for start, kl in (
        ("circuit", under["circuit"]["kl"]),
        ("the rest without it", under["complement"]["kl"]),
        ("4 random circuits", under["random"]["scores"]["kl"]),
        ("nothing kept", under["empty"]["kl"]),
    ):
        (text,) = [value for name, value in rows.items() if name.startswith(start)]
        assert text.startswith(f"{kl['mean']:.3f}")
    assert f"max {under['circuit']['kl']['max']:.3f}" in rows[next(name for name in rows if name.startswith("circuit"))]
    titles = page.locator("figcaption").all_text_contents()
    for title in ("Ranking all neurons, zero ablation", "With a part of the rest, interchange ablation", "KL by step"):
        assert title in titles
    tips = page.locator("figure[data-chart=size_neuron_zero] title").all_text_contents()
    learned = next(c for c in found["curves"]["zero"] if c["method"] == "learned" and c["level"] == "neuron")
    assert f"learned gates: CPR {learned['cpr']:.3f}, CMD {learned['cmd']:.3f}" in tips
    levels = found["circuits"][0]["ablations"]["interchange"]["minimality"]
    assert page.locator("[aria-label=Minimality] tbody tr").count() == len(levels) > 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_and_the_button_and_can_be_read(browser, runs, scheme):
    for path in (runs.one.report, runs.many.report, runs.pair):
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


def test_a_phone_scrolls_in_one_direction(browser, runs):
    for path in (runs.one.report, runs.many.report, runs.pair):
        opened = Opened(browser, path, width=380)
        opened.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert opened.overflow() <= 0
        opened.assert_quiet()


def test_text_is_never_markup(browser, runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs.one.path, folder)
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
            content["circuits"][0]["name"] = content["verdict"] = HOSTILE
            for curve in content["curves"]["zero"]:
                curve["circuit"] = curve["method"] = HOSTILE[:100]
        (folder / name).write_text(json.dumps(content))
    opened = Opened(browser, render(folder), width=380)
    page = opened.page
    assert page.locator(".prompt").first.text_content() == HOSTILE
    assert page.locator(".prompt").first.get_attribute("dir") == "auto"
    assert page.locator(".answers bdi").first.text_content() == "</bdi><script>window.hacked=1</script>"
    assert page.locator("#asked dd").nth(1).text_content() == HOSTILE[:60]
    assert page.evaluate("window.hacked") is None
    assert opened.overflow() <= 0
    opened.assert_quiet()


def test_nothing_may_leave_the_page(browser, runs):
    text = runs.one.report.read_text()
    script = text[text.rindex("<script>") + 8 : text.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy.startswith("default-src &#39;none&#39;;")
    assert f"script-src &#39;sha256-{digest}&#39;;" in policy
    page = Opened(browser, runs.one.report).page
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
    (written,) = report([str(path)])
    assert written == tmp_path / "large.html"
    assert written.stat().st_size < 1_000_000
    opened = Opened(browser, written, width=380)
    assert opened.page.locator("details.layer").count() == layers
    assert opened.page.locator(".heads .node").count() == layers * heads
    for texts, names in zip(listed(opened.page, 31), expected(masks, 31), strict=True):
        assert texts[0].split(", ") == names
    assert opened.overflow() <= 0
    opened.assert_quiet()


def test_figures_are_files_for_papers(runs, tmp_path, capsys):
    assert (
        answer(
            run_report, [str(runs.one.path), "--output", str(tmp_path / "page.html"), "--figures", str(tmp_path / "f")]
        )
        == 0
    )
    written = capsys.readouterr().out.split()
    assert str(tmp_path / "page.html") in written
    names = {path.stem for path in (tmp_path / "f").iterdir()}
    assert {"training_kl", "training_size", "size_neuron_zero", "partial_zero", "model_one"} <= names
    for name in names:
        assert (tmp_path / f"f/{name}.pdf").read_bytes().startswith(b"%PDF")
        with Image.open(tmp_path / f"f/{name}.png") as image:
            assert max(image.size) > 600
            dark, light = image.convert("L").getextrema()
            assert (dark < 100, light) == (True, 255)
    svg = (tmp_path / "f/size_neuron_zero.svg").read_text()
    assert ">held-out KL, nats</text>" in svg, "text stays text"
    assert "var(--" not in svg, "the page's colours are the page's"


def test_the_same_files_give_the_same_page(runs, tmp_path):
    pages = [report([str(runs.one.path)], tmp_path / f"{index}.html")[0].read_bytes() for index in range(2)]
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "report needs a run folder or a circuit file"),
        (["RUN", "--colour", "red"], "report has no option --colour"),
        (["ABSENT"], "no such circuit file"),
        (["EMPTY"], "has no summary.json, so no finished run"),
        (["DAMAGED"], "summary.json: not readable as JSON"),
    ],
)
def test_mistakes_are_one_line(words, reason, runs, tmp_path, capsys):
    (tmp_path / "EMPTY").mkdir()
    (tmp_path / "DAMAGED").mkdir()
    (tmp_path / "DAMAGED/summary.json").write_text("{")
    places = {"RUN": runs.one.path, **{name: tmp_path / name for name in ("ABSENT", "EMPTY", "DAMAGED")}}
    assert answer(run_report, [str(places.get(word, word)) for word in words]) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_predictions_are_those_of_the_plain_model(embedded):
    """Everything kept is the full model; nothing kept, under interchange ablation, the full model on the corrupted prompt."""
    frozen, tokenizer = embedded
    data = load_task(load(None, {"task.size": 40}).task, tokenizer, frozen.model.config)
    widths = {"attention_neuron": 128, "mlp_neuron": 320}
    everything = {name: torch.ones(4, width, dtype=torch.bool) for name, width in widths.items()}
    with Streams(frozen, INTERCHANGE) as streams:
        rows = predictions(streams, [everything], INTERCHANGE, data, tokenizer, size=5)["members"][0]
    assert len(rows) == 12
    for example, row in zip(data.splits["test"], rows, strict=False):
        assert row["prompt"] == data.pairs[example.id].clean
        for column, ids in (("full", example.clean), ("circuit", example.clean), ("complement", example.corrupted)):
            with torch.no_grad():
                shares = frozen.model(torch.tensor([ids]), use_cache=False).logits[0, -1].softmax(-1)
            best = shares.topk(3)
            assert [one["probability"] for one in row[column]] == pytest.approx(best.values.tolist(), abs=2e-6)
            token = int(best.indices[0])
            assert row[column][0]["right"] == (token in {answer[0] for answer in example.answers})
            assert (
                tokenizer.decode([*example.clean, token]) == tokenizer.decode(example.clean) + row[column][0]["token"]
            )
