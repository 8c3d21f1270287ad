"""report.html in a real browser: what it shows is what was found."""

import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.cli import answer, run_report
from bigcircuit.config.load import load
from bigcircuit.config.plain import without_folders
from bigcircuit.data.dataset import load_task
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.evaluation.compare import compare_circuits
from bigcircuit.evaluation.config import ComparisonSettings, EvaluationSettings
from bigcircuit.evaluation.evaluate import evaluate_circuits
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.predictions import example_predictions
from bigcircuit.report import charts, page_content
from bigcircuit.report.render import write_report
from bigcircuit.results.run import open_source
from tests.helpers.browser import Opened
from tests.helpers.short_reports import circuit_of, expected, listed
from tests.helpers.short_runs import run


def test_layers_open_down_to_the_neurons_of_the_circuit_file(browser, reported):
    masks = circuit_of(reported.one.path / "circuit.safetensors")
    opened = Opened(browser, reported.one.report)
    page = opened.page
    for layer in range(len(masks["head"])):
        for texts, names in zip(listed(page, layer), expected(masks, layer), strict=True):
            assert (texts[0].split(", ") if texts else []) == names
    said = page.locator("details.layer[data-layer='0'] > summary").get_attribute("aria-label")
    assert f"{int(masks['head'][0].sum())} of 8 heads" in said
    assert page.locator(".node[style*='--k']").count() == int(masks["head"].sum() + masks["mlp"].sum())
    opened.assert_quiet()


def test_pointing_at_a_neuron_names_it(browser, reported):
    masks = circuit_of(reported.one.path / "circuit.safetensors")
    layer = int(masks["mlp"].flatten().nonzero()[0])
    neuron = int(masks["mlp_neuron"][layer].nonzero()[0])
    page = Opened(browser, reported.one.report).page
    listed(page, layer)
    box = page.locator(f"details.layer[data-layer='{layer}'] .pixels[data-what='MLP neuron']")
    place = box.bounding_box()
    columns, rows = (int(box.get_attribute(f"data-{name}")) for name in ("columns", "rows"))
    x, y = (neuron % columns + 0.5) / columns * place["width"], (neuron // columns + 0.5) / rows * place["height"]
    box.hover(position={"x": x, "y": y})
    assert page.locator("output", has_text="MLP").text_content() == f"L{layer}MLP.{neuron}: kept"


def test_layers_open_by_keyboard_and_without_a_script(browser, reported):
    page = Opened(browser, reported.one.report, script=False).page
    layer = page.locator("details.layer").first
    layer.locator("summary").focus()
    page.keyboard.press("Enter")
    image = layer.locator("img").first
    assert image.is_visible()
    assert re.fullmatch(r"head: \d+ of 128 kept", image.get_attribute("alt"))
    everything = Opened(browser, reported.many.report, script=False).page
    assert [one.is_visible() for one in everything.locator(".circuit").all()] == [True] * 4
    assert not everything.locator("#theme").is_visible()


def test_members_are_switched_by_chip_table_and_mark(browser, reported):
    opened = Opened(browser, reported.many.report)
    page = opened.page
    summary = json.loads(reported.many.summary.read_text())

    def shown():
        return page.locator(".circuit:visible").get_attribute("id"), page.locator(
            ".pick [aria-current]"
        ).all_text_contents()

    assert shown() == ("all", ["all together"])
    page.locator(".pick a", has_text="member 1").click()
    assert shown() == ("member-1", ["member 1"])
    texts = listed(page, 1)
    names = expected(circuit_of(reported.many.path / "circuits/1.safetensors"), 1)
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


@pytest.mark.parametrize("width", [1200, 390])
def test_choosing_a_member_leaves_the_page_where_it_is_and_the_chips_in_sight(browser, reported, width):
    page = Opened(browser, reported.many.report, width=width).page
    page.locator("#shown").scroll_into_view_if_needed()
    page.evaluate("document.querySelector('#shown').scrollIntoView()")
    before = page.evaluate("scrollY")
    for index in (2, 0):
        page.locator(f".pick a[href='#member-{index}']").click()
        assert page.evaluate("scrollY") == before
    page.locator("figure[data-chart=size_kl] .of-member a").nth(1).click()
    assert page.locator(".circuit:visible").get_attribute("id") == "member-1"
    assert page.evaluate("document.querySelector('.bar').getBoundingClientRect().bottom") <= min(
        page.locator(".pick a").first.bounding_box()["y"], page.locator("#member-1 h3").first.bounding_box()["y"]
    )


def test_table_is_sorted_by_its_headings(browser, reported):
    page = Opened(browser, reported.many.report).page
    summary = json.loads(reported.many.summary.read_text())
    by_size = [f"member {row['member']}" for row in sorted(summary["members"], key=lambda row: row["kept"]["total"])]
    heading = page.locator("#circuits thead th", has_text=re.compile("^neurons"))
    for expected_order, direction in ((by_size, "ascending"), (by_size[::-1], "descending")):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == direction
        assert page.locator("#circuits tbody th").all_text_contents() == expected_order
    page.locator("#circuits thead button", has_text="KL").press("Enter")
    by_kl = sorted(summary["members"], key=lambda row: row["scores"]["kl"]["mean"])
    assert page.locator("#circuits tbody th").all_text_contents() == [f"member {row['member']}" for row in by_kl]


def test_two_circuits_are_drawn_over_each_other(browser, reported):
    first, second = (circuit_of(path) for path in reported.pair_files)
    opened = Opened(browser, reported.pair)
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


def test_a_run_that_was_compared_shows_with_what(browser, reported, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(reported.one.path, folder)
    compare_circuits([str(folder), str(reported.pair_files[0])], ComparisonSettings(), Console(file=io.StringIO()))
    opened = Opened(browser, folder / "report.html")
    assert opened.page.locator(".pick a").all_text_contents() == ["run", "compared"]
    opened.page.locator(".pick a").nth(1).click()
    assert "only in many/0" in opened.page.locator("#compared .legend").text_content()
    verdict = json.loads((folder / "comparison.json").read_text())["verdict"]
    assert opened.page.locator("#overlap p").first.text_content() == verdict
    opened.assert_quiet()


def test_circuits_beyond_the_budget_of_a_page_are_in_its_table(browser, reported, tmp_path, monkeypatch):
    monkeypatch.setattr(page_content, "BUDGET", 1)
    (path,) = write_report([str(reported.many.path)], tmp_path / "page.html")
    page = Opened(browser, path).page
    assert page.locator(".pick a").all_text_contents() == ["all together", "member 0"]
    assert page.get_by_text("2 more circuits are in the table below").is_visible()
    assert page.locator("#circuits tbody tr").count() == 3
    assert page.locator("#circuits tbody a").count() == 1


def test_outputs_of_mlps_are_drawn_where_they_have_masks(browser, reported, tmp_path):
    circuit = Circuit.load(reported.pair_files[0])
    outputs = torch.zeros(4, 64, dtype=torch.bool)
    outputs[2, [3, 40]] = True
    widths = json.loads(circuit.metadata["widths"]) | {"mlp_output": [64] * 4}
    metadata = {**circuit.metadata, "widths": json.dumps(widths)}
    Circuit({**circuit.masks, "mlp_output": outputs}, {}, metadata).save(tmp_path / "c.safetensors")
    (path,) = write_report([str(tmp_path / "c.safetensors")])
    page = Opened(browser, path).page
    assert listed(page, 2, ".circuit")[2] == ["3, 40"]


def test_page_shows_the_evaluation(browser, reported):
    found = json.loads((reported.one.path / "evaluation.json").read_text())
    page = Opened(browser, reported.one.report).page
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
    assert (
        page.locator("figure[data-chart=size_head_zero] .note").text_content()
        == "Only heads are closed; all else stays open."
    )
    assert page.locator("figure[data-chart=size_neuron_zero] .note").count() == 0
    said = found["verdict"].partition(" With zero ablation its KL is ")[2]
    assert said.startswith(f"{under['circuit']['kl']['mean']:.3f}")
    no_worse = under["complement"]["kl"]["mean"] <= under["circuit"]["kl"]["mean"]
    assert ("the rest without it (KL" in said) == no_worse
    levels = found["circuits"][0]["ablations"]["interchange"]["minimality"]
    assert page.locator("[aria-label=Minimality] tbody tr").count() == len(levels) > 3


def test_predictions_are_those_of_the_plain_model(embedded):
    """Everything kept is the full model; nothing kept, under interchange ablation, the full model on the corrupted prompt."""
    frozen, tokenizer = embedded
    data = load_task(load(None, {"task.size": 40}).task, tokenizer, frozen.model.config)
    widths = {"attention_neuron": 128, "mlp_neuron": 320}
    everything = {name: torch.ones(4, width, dtype=torch.bool) for name, width in widths.items()}
    with Streams(frozen, INTERCHANGE) as streams:
        rows = example_predictions(streams, [everything], INTERCHANGE, data, tokenizer, MicroBatches(5))["members"][0]
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


def facts_of(page, section):
    """Name of each fact -> its lines."""
    return page.locator(f"{section} .facts").first.evaluate(
        """list => {
          const found = {};
          let name;
          for (const one of list.children)
            if (one.tagName === "DT") found[name = one.textContent] = []; else found[name].push(one.textContent.trim());
          return found;
        }"""
    )


@pytest.fixture(scope="module")
def two_tasks(tmp_path_factory):
    """Runs on two tasks, under two ablations, for two numbers of steps; the second has no validation after its first."""
    base = tmp_path_factory.mktemp("tasks")
    short = {"task__size": 40, "train__steps": 4, "train__validate_every": 2, "train__log_every": 2}
    return [
        run(base / "names", **short),
        run(base / "repeats", **{**short, "train__steps": 2}, task__name="induction", ablation__kind="zero"),
    ]


def test_circuits_of_two_tasks_are_not_shown_as_of_the_first(browser, two_tasks, tmp_path):
    """Whether runs are named, which keep all that they know, or their circuit files alone."""
    files = [folder.path / "circuit.safetensors" for folder in two_tasks]
    known = [Circuit.load(file).metadata for file in files]
    for index, names in enumerate(([folder.path for folder in two_tasks], files)):
        (path,) = write_report([str(name) for name in names], tmp_path / f"{index}.html")
        opened = Opened(browser, path)
        page = opened.page
        assert page.locator("h1").text_content() == "ioi, induction: 2 circuits"
        rows = rows_of(page)
        assert [(row["task"], row["found under"]) for row in rows.values()] == [
            ("ioi", "interchange"),
            ("induction", "zero"),
        ]
        asked = facts_of(page, "#asked")
        assert asked["Behaviour"] == ["names: ioi", "repeats: induction"]
        assert [line.partition(": ")[2].partition(":")[0] for line in asked["Closed nodes"]] == ["interchange", "zero"]
        best = sorted({int(one["step"]) for one in known})
        assert asked["Best step"] == ["–".join(map(str, best))]
        hashes = facts_of(page, "#settings")
        assert hashes["task sha256"] == [
            f"{n}: {k['task_sha256']}" for n, k in zip(("names", "repeats"), known, strict=True)
        ]
        assert hashes["model weights sha256"] == [known[0]["model_weights_sha256"]]
        if names is files:
            assert "Training" not in asked and page.locator("#scores, #training").count() == 0
            continue
        assert asked["Training"] == ["names: 4 steps of 8 pairs", "repeats: 2 steps of 8 pairs"]
        assert page.locator("#scores h3.whose").all_text_contents() == ["names", "repeats"]
        tips = page.locator("figure[data-chart=training_kl] .of-member title").all_text_contents()
        assert sorted(tips) == ["names", "names", "repeats", "repeats"], "what training saw, and validation"
        for folder, text in zip(two_tasks, page.locator("#settings pre").all_text_contents(), strict=True):
            assert json.loads(text)["run"] == json.loads(without_folders(folder.config.read_text()))
        opened.assert_quiet()


def test_a_population_says_how_its_members_differ_and_when_each_was_best(browser, reported, tmp_path):
    shutil.copytree(reported.many.path, tmp_path / "run")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    for row, step in zip(summary["members"], (4, 2, 6), strict=True):
        row["best_step"] = step
    (tmp_path / "run/summary.json").write_text(json.dumps(summary))
    (path,) = write_report([str(tmp_path / "run")])
    page = Opened(browser, path).page
    asked = facts_of(page, "#asked")
    assert asked["Best step"] == ["2–6"]
    assert asked["Population"] == ["3 members that differ in target.total"]
    assert asked["Size asked for"] == [f"member {i}: {size} site neurons" for i, size in enumerate((300, 150, 220))]
    assert [row["best step"] for row in rows_of(page).values()] == ["4", "2", "6"]
    lead = page.locator(".lead").text_content()
    assert lead.startswith("The 3 circuits keep 150–300 of 1,792 neurons") and "held-out KL of" in lead


@pytest.fixture(scope="module")
def apart(reported, tmp_path_factory):
    """A tree with a population, and folders of their own for an evaluation of two members and a comparison of them."""
    base = tmp_path_factory.mktemp("apart") / "runs"
    shutil.copytree(reported.many.path, base / "many")
    names = [str(base / f"many/circuits/{index}.safetensors") for index in (0, 1)]
    settings = EvaluationSettings(draws=2, partial_draws=0, groups=0, methods=(), output=str(base / "evaluated"))
    evaluate_circuits(names, settings, Ranks())
    compare_circuits(names, ComparisonSettings(output=str(base / "compared")), Console(file=io.StringIO()))
    for folder, file in (("evaluated", "evaluation.json"), ("compared", "comparison.json")):
        (base / folder / "report.html").unlink()
        assert [path.name for path in (base / folder).iterdir()] == [file]
    return base


def rows_of(page):
    """Name of each circuit -> heading -> cell."""
    table = page.locator("#circuits table")
    headings = [one.partition("\u2195")[0] for one in table.locator("thead th").all_text_contents()[1:]]
    return {row.locator("th").text_content(): dict(zip(headings, row.locator("td").all_text_contents(), strict=True))
            for row in table.locator("tbody tr").all()}  # fmt: skip


@pytest.mark.parametrize("folder", ["evaluated", "compared"])
@pytest.mark.parametrize("moved", [False, True])
def test_a_folder_of_an_evaluation_or_a_comparison_alone(browser, apart, tmp_path, folder, moved):
    """Circuits are drawn wherever their files are: also when the whole tree has another name and place by now."""
    base = tmp_path / "elsewhere" if moved else apart
    if moved:
        shutil.copytree(apart, base)
        for file in base.glob("*/*on.json"):
            file.write_text(file.read_text().replace(str(apart), "/home/before/runs"))
    assert answer(run_report, [str(base / folder)]) == 0
    opened = Opened(browser, base / folder / "report.html")
    page = opened.page
    assert page.locator(".pick a").all_text_contents() == ["all together", "many/0", "many/1"]
    masks = [circuit_of(apart / f"many/circuits/{index}.safetensors") for index in (0, 1)]
    assert {name: cells["heads"] for name, cells in rows_of(page).items()} == {
        f"many/{index}": str(int(masks[index]["head"].sum())) for index in (0, 1)
    }
    page.locator(".pick a").nth(2).click()
    assert listed(page, 1)[0] == [", ".join(expected(masks[1], 1)[0])]
    assert not page.get_by_text("Not drawn").is_visible() and not page.get_by_text("of one population").is_visible()
    assert page.locator("#scores").count() == (folder == "evaluated")
    asked = facts_of(page, "#asked")
    if folder == "evaluated":
        own = json.loads((apart / "many/examples.json").read_text())["members"][1]
        prompts = page.locator(".prompts:visible .examples .prompt:first-child").all_text_contents()
        assert prompts == [one["prompt"] for one in own]
        pairs = json.loads((apart / "many/summary.json").read_text())["pairs"]
        assert asked["Pairs"] == [", ".join(f"{n} {split}" for split, n in pairs.items() if n)]
        assert asked["Evaluation"][0].startswith("2 random circuits")
    assert page.locator("#overlap").count() == 1
    opened.assert_quiet()


@pytest.mark.parametrize("folder", ["evaluated", "compared"])
def test_the_snippet_opens_the_circuit_wherever_its_file_is(apart, tmp_path, monkeypatch, folder):
    """Records name files from the folder that the command ran in, which is not the folder of the JSON file."""
    shutil.copytree(apart, tmp_path / "runs")
    path = tmp_path / "runs" / folder / ("evaluation.json" if folder == "evaluated" else "comparison.json")
    content = json.loads(path.read_text())
    for index, one in enumerate(content["circuits"]):
        one["file"] = f"runs/many/circuits/{index}.safetensors"
    path.write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    page = page_content.page_content([open_source(Path(f"runs/{folder}"))])
    named = re.search(r"Circuit\.load\('([^']+)'\)", page.snippet)[1]
    assert named == "runs/many/circuits/0.safetensors" and Circuit.load(named).masks


@pytest.mark.parametrize("folder", ["evaluated", "compared"])
def test_without_the_circuit_files_everything_but_the_drawing_is_there(browser, apart, tmp_path, folder):
    (tmp_path / folder).mkdir()
    content = (file := next((apart / folder).glob("*.json"))).read_text()
    (tmp_path / folder / file.name).write_text(content.replace(str(apart), "/gone"))
    (path,) = write_report([str(tmp_path / folder)])
    opened = Opened(browser, path)
    found = json.loads(content)
    assert opened.page.get_by_text("Not drawn: many/0, many/1.").is_visible()
    assert opened.page.locator(".circuit").count() == 0
    assert opened.page.locator("h1").text_content() == "ioi: 2 circuits"
    kept = [f"{one['kept']['total']:,}" for one in found["circuits"]]
    assert [cells["neurons"] for cells in rows_of(opened.page).values()] == kept
    if folder == "compared":
        heads = opened.page.locator("#overlap tbody tr", has_text=re.compile("^heads")).locator("td")
        assert heads.nth(4).text_content() == f"{found['overlap']['head']['jaccard']:.3f}"
        assert found["verdict"] in opened.page.locator(".lead").text_content()
    else:
        kl = [one["ablations"]["interchange"]["circuit"]["kl"]["mean"] for one in found["circuits"]]
        rows = rows_of(opened.page).values()
        assert all(cells["KL, nats"].startswith(f"{k:.3f}") for k, cells in zip(kl, rows, strict=True))
    opened.assert_quiet()


def test_a_file_that_has_changed_since_is_not_drawn_for_the_old_one(apart, tmp_path):
    shutil.copytree(apart, tmp_path / "runs")
    (tmp_path / "runs/compared/comparison.json").write_text(
        (apart / "compared/comparison.json").read_text().replace(str(apart), str(tmp_path / "runs"))
    )
    shutil.copy(apart / "many/circuits/2.safetensors", tmp_path / "runs/many/circuits/1.safetensors")
    (path,) = write_report([str(tmp_path / "runs/compared")])
    assert "Not drawn: many/1." in path.read_text()


@pytest.mark.parametrize(("settings", "kl", "size"), [
    ({}, "in training, one batch at a size drawn while sizes fall", "sum of the soft gates"),
    ({"gates__look_ahead": False}, "in training, soft gates", "sum of the soft gates"),
    ({"gates__parametrisation": "hard_concrete"}, "in training, with noise", "expected in training"),
    ({"gates__sampled_sizes": True}, "in training, at sizes of all kinds", "sum of the soft gates"),
])  # fmt: skip
def test_curves_of_the_training_say_which_gates_they_saw(tmp_path, settings, kl, size):
    folder = run(
        tmp_path / "run", task__size=40, train__steps=2, train__log_every=1, train__validate_every=2, **settings
    )
    found = charts.training_charts({"run": open_source(folder.path).members[0]})
    labels = [[text.get_text() for text in chart.figure.legends[0].get_texts()] for chart in found]
    checked = "validation, rounded gates, the size asked for"
    assert labels == [[kl, checked], [size, checked]]
    seen, rounded = found[0].figure.axes[0].lines[::-1]
    assert seen.get_zorder() < rounded.get_zorder() and seen.get_linewidth() < rounded.get_linewidth()
