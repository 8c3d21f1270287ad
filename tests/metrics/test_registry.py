"""One entry of SCORES is enough for a score to be computed, summarised and shown everywhere."""

import csv
import io
import json
import math
import shutil
import subprocess
import sys

import pytest
import torch

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.config.load import load
from bigcircuit.data.dataset import load_task
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.console import score_table
from bigcircuit.evaluation.evaluate import evaluate_circuits
from bigcircuit.forward.streams import Streams
from bigcircuit.io.files import write_json
from bigcircuit.io.provenance import versions
from bigcircuit.metrics.registry import SCORES, ScoreKind, example_scores, page_scores
from bigcircuit.metrics.score import score, summarise
from bigcircuit.report.render import render_run
from bigcircuit.report.sweep_outputs import write_sweep_outputs
from bigcircuit.runtime.console import PlainConsole
from bigcircuit.train.summary_table import closing_table
from tests.helpers.short_runs import FAST, QUICK, run
from tests.helpers.sweep_dir import write_trial

NAME = "jensen_shannon"
REQUIRED = {
    "short": "JS",
    "long": "Jensen-Shannon divergence",
    "description": "mean of both divergences from the mixture",
}


def jensen_shannon(logits):
    """Jensen-Shannon divergence of circuit and full model in nats, [P, B]."""
    full, circuit = logits.reference.float().softmax(-1), logits.logits.float().softmax(-1)
    middle = (full + circuit) / 2
    divergences = [(p * (p.clamp(min=1e-30) / middle).log()).sum(-1) for p in (full, circuit)]
    return logits.mean_over_answer((divergences[0] + divergences[1]) / 2)


ENTRIES = {
    NAME: ScoreKind(**REQUIRED, unit="nats", lower_is_better=True, compute=jensen_shannon, tails=("p95",)),
    "recovered_probability": ScoreKind(
        short="rec. prob",
        long="recovered probability",
        description="share of the full model's mean probability difference",
        share_of="probability_difference",
    ),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run and its evaluation from before the score was added."""
    folder = run(tmp_path_factory.mktemp("plain") / "run").path
    evaluate_circuits([str(folder)], EvaluationSettings(**FAST), Ranks())
    return folder


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A run and its evaluation with two more entries of SCORES, which stay while the tests of this fixture run."""
    with pytest.MonkeyPatch.context() as patch:
        for name, kind in ENTRIES.items():
            patch.setitem(SCORES, name, kind)
        folder = run(tmp_path_factory.mktemp("extended") / "run").path
        result = evaluate_circuits([str(folder)], EvaluationSettings(**FAST), Ranks())
    return folder, result


@pytest.fixture
def entries(monkeypatch):
    for name, kind in ENTRIES.items():
        monkeypatch.setitem(SCORES, name, kind)


def shown(table, width):
    stream = io.StringIO()
    PlainConsole(file=stream, width=width).print(table)
    return stream.getvalue()


@pytest.mark.parametrize("heading", ["short", "long", "description"])
def test_a_score_without_a_heading_or_description_is_refused(heading):
    with pytest.raises(ValueError, match=f"a score needs a {heading}"):
        ScoreKind(**{**REQUIRED, heading: " "}, compute=jensen_shannon)
    with pytest.raises(TypeError, match=heading):
        ScoreKind(**{key: text for key, text in REQUIRED.items() if key != heading}, compute=jensen_shannon)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"compute": jensen_shannon, "share_of": "kl"},
        {"compute": jensen_shannon, "tails": ("p50",)},
        {"share_of": "kl", "tails": ("min",)},
    ],
)
def test_an_entry_that_cannot_be_computed_or_shown_is_refused(fields):
    with pytest.raises(ValueError, match="Jensen-Shannon divergence: "):
        ScoreKind(**REQUIRED, **fields)


def test_the_entries_fit_together():
    assert set(page_scores()) == set(SCORES)
    for on in ("pairs", "text"):
        kinds = [kind for kind in SCORES.values() if on in kind.on]
        assert {kind.share_of or kind.exp_of for kind in kinds if kind.compute is None} <= set(example_scores(on))
        for field in ("short", "long"):
            assert len({getattr(kind, field) for kind in kinds}) == len(kinds), "no two scores share a heading"


def test_the_table_loads_no_torch():
    code = "import sys, bigcircuit.metrics.registry; assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_score_has_the_order_of_old_files(plain):
    """Order and names of keys in files that other programs read."""
    pairs = ["kl", "cross_entropy", "logit_difference", "probability_difference", "accuracy", "exact_match"]
    assert list(example_scores()) == pairs
    summary = json.loads((plain / "summary.json").read_text())
    assert list(summary["full"]) == [*pairs, "recovered"]
    rows = [json.loads(line) for line in (plain / "metrics.jsonl").read_text().splitlines()]
    validated = [key for key in rows[-1] if key.startswith("validation.")]
    assert validated[: len(pairs) + 1] == [f"validation.{name}" for name in (*pairs, "objective")]


@pytest.mark.usefixtures("entries")
def test_a_new_entry_is_computed_for_every_pair(embedded):
    frozen, tokenizer = embedded
    examples = load_task(load(None, QUICK).task, tokenizer, frozen.model.config).splits["test"][:5]
    masks = {"attention_neuron": torch.rand(4, 128) > 0.3, "mlp_neuron": torch.rand(4, 320) > 0.3}
    with Streams(frozen, INTERCHANGE) as streams:
        found = score(streams, examples, [masks], MicroBatches(2), full=True)
    assert list(found) == [*list(example_scores())]
    assert found[NAME].shape == (2, 5)
    assert found[NAME][1].abs().max() < 1e-6, "the full model is itself"
    assert (found[NAME][0] > 0).all() and (found[NAME][0] < math.log(2)).all()
    scores = summarise(found, found.circuit(-1), 0, found.circuit(-1))
    assert scores[NAME].mean == pytest.approx(found[NAME][0].mean().item(), rel=1e-6)
    assert math.isnan(scores["recovered_probability"].mean), "no difference, no share of it"


def test_a_new_entry_is_in_the_files_of_a_run(extended):
    folder, _ = extended
    summary = json.loads((folder / "summary.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1][f"validation.{NAME}"] > 0
    circuit, full, empty = summary["members"][0]["scores"], summary["full"], summary["empty"]
    assert 0 < circuit[NAME]["mean"] <= empty[NAME]["mean"] <= math.log(2) and full[NAME]["mean"] < 1e-6
    share, difference = "recovered_probability", "probability_difference"
    gain = full[difference]["mean"] - empty[difference]["mean"]
    expected = (circuit[difference]["mean"] - empty[difference]["mean"]) / gain
    assert circuit[share]["mean"] == pytest.approx(expected) and circuit[share]["max"] is None
    assert (full[share]["mean"], empty[share]["mean"]) == (1, 0)


@pytest.mark.usefixtures("entries")
def test_a_new_entry_is_in_the_tables_of_the_terminal(extended):
    folder, result = extended
    closing = shown(closing_table(json.loads((folder / "summary.json").read_text()), 110), 110)
    (ablation,) = result.circuits[0].ablations
    evaluated = shown(score_table(result, ablation, 140), 140)
    for text in (closing, evaluated):
        assert "JS" in text and "rec. prob" in text and "…" not in text


def test_a_new_entry_is_compared_with_random_circuits_in_its_direction(extended):
    _, result = extended
    (under,) = result.circuits[0].ablations.values()
    drawn = under.random.scores[NAME]
    assert (drawn.better > 0) == (drawn.min <= under.circuit[NAME].mean), "lower is better"
    opposite = under.random.scores["logit_difference"]
    assert (opposite.better > 0) == (opposite.max >= under.circuit["logit_difference"].mean), "higher is better"
    assert under.complement[NAME].mean > 0 and under.off_distribution is None


@pytest.mark.usefixtures("entries")
def test_a_new_entry_is_on_the_page(extended):
    folder, _ = extended
    page = render_run(folder).read_text()
    for kind in ENTRIES.values():
        assert f'<th scope="col">{kind.heading}</th>' in page
        assert f"<dd>{kind.description.replace(chr(39), '&#39;')}</dd>" in page


@pytest.mark.usefixtures("entries")
def test_a_new_entry_is_in_the_outputs_of_a_sweep_beside_older_trials(extended, plain, tmp_path):
    config = load(None, {**QUICK, "output": str(tmp_path)})
    write_json(tmp_path / "sweep.json", {
        "config": config.model_dump(mode="json"), "sweep": {"space": {"train.seed": [0, 1]}, "search": "grid"},
        "command": [], "versions": versions(),
    })  # fmt: skip
    for number, folder in enumerate((extended[0], plain)):
        shutil.copytree(folder, tmp_path / f"trials/{number:03d}")
        write_trial(tmp_path, number, {"train.seed": number}, status="finished", step=12, steps=12)
    write_sweep_outputs(tmp_path)
    with (tmp_path / "trials.csv").open(newline="") as file:
        new, old = csv.DictReader(file)
    summary = json.loads((extended[0] / "summary.json").read_text())["members"][0]["scores"]
    assert float(new[NAME]) == summary[NAME]["mean"] and old[NAME] == ""
    assert list(new)[list(new).index("exact_match") + 1] == NAME
    page = (tmp_path / "report.html").read_text()
    assert page.count(ENTRIES[NAME].heading) >= 3, "in the table of all trials, of the new trial, and explained"


@pytest.mark.usefixtures("entries")
def test_files_from_before_an_entry_are_still_shown(plain):
    page = render_run(plain).read_text()
    assert "exact match" in page
    assert f'<th scope="col">{ENTRIES[NAME].heading}</th>' not in page
    assert "JS" in shown(closing_table(json.loads((plain / "summary.json").read_text()), 110), 110)
