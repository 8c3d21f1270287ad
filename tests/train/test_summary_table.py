"""The closing table and its sentence."""

import io
import json

from bigcircuit.runtime.console import PlainConsole
from bigcircuit.train.summary_table import closing_sentence, closing_table
from tests.helpers.short_runs import run


def test_closing_table_fits_eighty_columns_and_says_it_in_words(tmp_path):
    summary = json.loads(run(tmp_path / "run").summary.read_text())
    stream = io.StringIO()
    PlainConsole(file=stream, width=80).print(closing_table(summary, width=80))
    shown = stream.getvalue()
    assert "…" not in shown
    for row in ("model", "circuit", "empty"):
        assert row in shown
    assert closing_sentence(summary).startswith("Keeping 200 of 1792 neurons")


def member(total, head, mlp, kl, same, right):
    means = {"kl": kl, "exact_match": same, "accuracy": right}
    scores = {name: {"mean": mean, "low": mean / 2, "high": mean * 2} for name, mean in means.items()}
    return {"kept": {"total": total, "head": head, "mlp": mlp}, "scores": scores}


def test_the_sentence_speaks_of_all_members():
    nodes, first = {"total": 1792, "head": 32, "mlp": 4}, member(200, 12, 4, 0.5, 0.9, 0.95)
    assert closing_sentence({"nodes": nodes, "members": [first]}) == (
        "Keeping 200 of 1792 neurons (12 of 32 heads, 4 of 4 MLPs) the model still predicts what the full model predicts on 90% of "
        "the held-out prompts and prefers the right answer on 95% (KL 0.500 nats, 95% interval 0.250 to 1.000)."
    )
    others = [member(90, 15, 4, 0.75, 0.4, 0.95), member(150, 9, 4, 0.6, 0.5, 0.7)]
    assert closing_sentence({"nodes": nodes, "members": [first, *others]}) == (
        "Keeping 90–200 of 1792 neurons (9–15 of 32 heads, 4 of 4 MLPs) the 3 circuits still predict what the full model predicts "
        "on 40–90% of the held-out prompts and prefer the right answer on 70–95% (KL 0.500–0.750 nats)."
    )
