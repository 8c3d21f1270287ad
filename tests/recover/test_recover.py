"""The verb: an exported model is trained towards its base, on any number of ranks, and loads as before."""

import json
import shutil
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import bigcircuit
from bigcircuit.cli import answer, run_export, run_recover
from bigcircuit.config.text import TextConfig
from bigcircuit.data.collate import collate
from bigcircuit.data.text import samples, windows_of_corpus
from bigcircuit.io import checkpoint
from bigcircuit.io.run_dir import RunDir, read_metrics
from bigcircuit.recover import loop
from bigcircuit.recover.config import RecoverSettings
from bigcircuit.recover.step import compare_windows, rate_at
from bigcircuit.recover.trainable import make_trainable
from tests.helpers.launch import launch
from tests.helpers.short_runs import run

QUICK = [
    *"--recover.verify false --recover.tokens 12 --recover.steps 6 --recover.batch_size 8".split(),
    *"--recover.micro_batch_size 4 --recover.generate 24".split(),
]
FILE = "model.safetensors"


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A circuit of the embedded model in three formats."""
    folder = tmp_path_factory.mktemp("exports")
    run(folder / "run", ablation__kind="zero", target__total=900)
    for name in ("compact", "uniform", "zeroed", "ia3"):
        words = [str(folder / "run"), "--format", name, "--output", str(folder / name), "--speed", "false"]
        assert answer(run_export, [*words, "--verify", "false"]) == 0
    return folder


def recovered(*words) -> int:
    return answer(run_recover, [str(word) for word in words])


def content(path) -> dict:
    return json.loads((path / "recover.json").read_text())


def test_a_recovery_that_made_it_worse_is_told(exports, tmp_path, capsys):
    last = ["--recover.validation", 0]
    assert recovered(exports / "compact", *QUICK, *last, "--recover.lr", 1, "--output", tmp_path / "worse") == 0
    found, said = content(tmp_path / "worse"), capsys.readouterr()
    assert found["after"]["kl"][0] > found["before"]["kl"][0]
    assert "note: kl of held-out text rose from" in said.out + said.err and "a lower recover.lr" in said.out + said.err
    assert recovered(exports / "compact", *QUICK, "--recover.lr", 0.003, "--output", tmp_path / "better") == 0
    found, said = content(tmp_path / "better"), capsys.readouterr()
    assert found["after"]["kl"][0] < found["before"]["kl"][0] and "held-out text rose" not in said.out + said.err


def test_the_step_that_predicts_validation_text_best_is_written(exports, tmp_path, capsys):
    words = [exports / "compact", *QUICK, "--recover.generate", 60, "--recover.lr", 0.1, "--recover.validate_every", 1]
    assert recovered(*words, "--recover.steps", 12, "--output", tmp_path / "whole") == 0
    found, rows = content(tmp_path / "whole"), read_metrics(tmp_path / "whole" / "metrics.jsonl")
    scores = {row["step"]: row["validation.kl"] for row in rows if "validation.kl" in row}
    best = min(scores, key=scores.__getitem__)
    assert list(scores) == list(range(13)) and 0 < best < 12, "the rate is too high for the last step to be the best"
    assert (found["best_step"], found["validation"]) == (best, scores[best])
    assert f"the weights of step {best} of 12 are written" in capsys.readouterr().out
    saved = checkpoint.load_newest(tmp_path / "whole/checkpoints", print)
    assert saved.data["step"] == 12 and saved.data["best"] == [best, scores[best]]
    frozen = bigcircuit.load_exported(tmp_path / "whole"), bigcircuit.load_exported(exports / "compact")
    for name in {name.removesuffix(".best") for name in saved.tensors if name.endswith("lora_B.best")}:
        path = name.removesuffix(".lora_B")
        added = 2.0 * saved.tensors[f"{name}.best"] @ saved.tensors[f"{path}.lora_A.best"]  # alpha / rank
        one, other = (model.get_submodule(path).weight for model in frozen)
        torch.testing.assert_close(one - other, added, atol=1e-6, rtol=1e-5)


def test_an_export_that_no_step_improves_is_written_as_it_was(exports, tmp_path, capsys):
    assert recovered(exports / "compact", *QUICK, "--recover.lr", 1, "--output", tmp_path / "out") == 0
    found, said = content(tmp_path / "out"), capsys.readouterr().out
    assert (
        found["best_step"] == 0 and found["after"] == found["before"] and equal(exports / "compact", tmp_path / "out")
    )
    assert "note: no step lowered kl of validation text" in said and "held-out text rose" not in said


def test_text_without_validation_rows_keeps_the_last_step(exports, tmp_path, capsys):
    text = tmp_path / "text.jsonl"
    rows = [{"text": f"Anna met {n} dogs", "split": "train" if n < 6 else "test"} for n in range(8)]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert recovered(exports / "compact", *QUICK[:-2], "--recover.text", text, "--output", tmp_path / "out") == 0
    assert "best_step" not in content(tmp_path / "out")
    assert "note: no text is left to choose the step by" in capsys.readouterr().out
    named = [
        {**row, "split": "validation"} if row["split"] == "test" and row["text"].endswith("7 dogs") else row
        for row in rows
    ]
    text.write_text("".join(json.dumps(row) + "\n" for row in named))
    words = [exports / "compact", *QUICK[:-2], "--recover.text", text]
    assert recovered(*words, "--output", tmp_path / "by row") == 0
    assert "best_step" in content(tmp_path / "by row") and "no text is left" not in capsys.readouterr().out
    assert recovered(*words, "--recover.validation", 0, "--output", tmp_path / "last") == 0
    assert "best_step" not in content(tmp_path / "last") and "no text is left" not in capsys.readouterr().out


def equal(one, other) -> bool:
    first, second = load_file(one / FILE), load_file(other / FILE)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("name", "kind", "verify"),
    [("compact", "lora", True), ("compact", "rows", False), ("zeroed", "lora", False), ("zeroed", "rows", False)],
)
def test_an_export_comes_nearer_to_its_base_and_loads_as_before(exports, tmp_path, name, kind, verify):
    out = tmp_path / "out"
    more = ["--recover.lr", 0.003, "--recover.steps", 20, "--recover.verify", str(verify).lower()]
    assert recovered(exports / name, *QUICK, "--recover.train", kind, *more, "--output", out) == 0
    found = content(out)
    assert found["after"]["kl"][0] < found["before"]["kl"][0] and found["after"]["perplexity"][0] > 1
    low, high = found["before"]["kl"][1:]
    assert found["base"]["kl"] == [0, 0, 0] and low <= found["before"]["kl"][0] <= high
    if verify:
        assert found["verification"]["largest_difference"] <= found["verification"]["tolerance"]
    assert json.loads((out / "export.json").read_text())["recovered"]["after"] == found["after"]
    before, after = load_file(exports / name / FILE), load_file(out / FILE)
    assert before.keys() == after.keys()
    changed = [key for key in before if not torch.equal(before[key], after[key])]
    assert changed and all(".layers." in key for key in changed)
    for key in changed:
        if before[key].ndim == 2:
            closed = ~before[key].any(1), ~before[key].any(0)
            assert not after[key][closed[0]].any() and not after[key][:, closed[1]].any(), "closed rows stay zero"
    if name == "zeroed":
        assert any(not before[key].any(1).all() for key in before if before[key].ndim == 2), "there are closed rows"
    model = bigcircuit.load_exported(out)
    assert type(model).__name__ == type(bigcircuit.load_exported(exports / name)).__name__


@pytest.mark.parametrize("kind", ["lora", "rows"])
def test_two_processes_train_the_same_bits_as_one(exports, tmp_path, kind):
    words = [str(exports / "uniform"), *QUICK, "--recover.train", kind]
    assert recovered(*words, "--output", tmp_path / "one") == 0
    said = launch(2, "launchers/recover.py", *words, "--deepspeed", "zero2", "--output", str(tmp_path / "two"))
    assert "torchao" not in said and "is_gradient_checkpointing" not in said, "libraries report what is not used here"
    assert equal(tmp_path / "one", tmp_path / "two")
    assert content(tmp_path / "one")["after"] == content(tmp_path / "two")["after"]
    assert content(tmp_path / "one")["settings"]["lr"] == {"lora": 1e-3, "rows": 1e-4}[kind]


@pytest.mark.parametrize("kind", ["lora", "rows"])
def test_a_stopped_recovery_goes_on_to_the_same_bits(exports, tmp_path, monkeypatch, kind):
    words = [exports / "compact", *QUICK, "--recover.train", kind, "--recover.save_every", 2]
    words += ["--recover.validate_every", 3]
    assert recovered(*words, "--output", tmp_path / "whole") == 0
    real, steps = loop.update_export, []

    def interrupted(state, *rest):
        steps.append(state.step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return real(state, *rest)

    monkeypatch.setattr(loop, "update_export", interrupted)
    assert recovered(*words, "--output", tmp_path / "parts") == 130
    assert not (tmp_path / "parts" / FILE).exists() and "after" not in content(tmp_path / "parts")
    monkeypatch.setattr(loop, "update_export", lambda state, *rest: steps.append(state.step) or real(state, *rest))
    assert recovered(*words, "--output", tmp_path / "parts") == 0
    assert steps == [0, 1, 2, 3, 2, 3, 4, 5], "it goes on from the checkpoint of step 2"
    assert equal(tmp_path / "whole", tmp_path / "parts")
    assert content(tmp_path / "whole")["after"] == content(tmp_path / "parts")["after"]
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "parts")]
    assert lines[0] == lines[1] and '"step": 6' in lines[0]


def test_a_finished_recovery_is_left_alone_and_another_is_refused(exports, tmp_path, capsys):
    words = [exports / "compact", *QUICK, "--output", tmp_path / "out"]
    assert recovered(*words) == 0
    before = (tmp_path / "out" / FILE).stat().st_mtime_ns
    assert recovered(*words) == 0 and "nothing to do" in capsys.readouterr().out
    assert (tmp_path / "out" / FILE).stat().st_mtime_ns == before
    assert recovered(*words, "--recover.lr", 0.5) == 2
    assert "holds a recovery with another settings" in capsys.readouterr().err


def test_merged_weights_compute_what_the_matrices_do(exports):
    model = bigcircuit.load_exported(exports / "compact").eval()
    settings = RecoverSettings(generate=1)
    plain = {name: value.clone() for name, value in model.state_dict().items()}
    ids = torch.arange(12).view(1, -1)
    first = model(input_ids=ids).logits
    trained = make_trainable(model, "model.layers", settings)
    torch.testing.assert_close(trained.model(input_ids=ids).logits, first, atol=0, rtol=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one in trained.trained:
            one.parameter.add_(0.05 * torch.randn(one.parameter.shape, generator=generator))
            one.opened.keep_(one.parameter)
        with_matrices = trained.model(input_ids=ids).logits
        merged = trained.merged()
        assert merged.state_dict().keys() == plain.keys()
        torch.testing.assert_close(merged(input_ids=ids).logits, with_matrices, atol=1e-5, rtol=1e-5)
    assert (with_matrices - first).abs().max() > 0.01


def test_matrices_that_are_not_merged_are_an_adapter_of_the_export(exports, tmp_path):
    out = tmp_path / "out"
    assert recovered(exports / "uniform", *QUICK, "--recover.merge", "false", "--output", out) == 0
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in out.iterdir()}
    ids = torch.arange(8).view(1, -1)
    found = bigcircuit.load_exported(out)(input_ids=ids).logits
    assert recovered(exports / "uniform", *QUICK, "--output", tmp_path / "merged") == 0
    merged = bigcircuit.load_exported(tmp_path / "merged")(input_ids=ids).logits
    assert (found - merged).abs().max() <= 1e-5 * merged.abs().max()


def test_losses_are_their_closed_forms():
    base, export = torch.log(torch.tensor([[0.5, 0.5], [0.25, 0.75]])), torch.log(torch.tensor([[0.25, 0.75]] * 2))

    class Constant(torch.nn.Module):
        """Has the same logits whatever it reads."""

        def __init__(self, logits):
            super().__init__()
            self.logits = logits

        def forward(self, input_ids, **_):
            return type("Output", (), {"logits": self.logits.expand(*input_ids.shape, 2)})

    (window,) = windows_of_corpus(samples([(0, 1, 0)]), TextConfig(window=3), "text")
    found = compare_windows(Constant(export), Constant(base), collate([window], full=False))
    first = 0.5 * torch.log(torch.tensor(2.0)) + 0.5 * torch.log(torch.tensor(2 / 3))
    torch.testing.assert_close(found.kl, (first / 2).view(1, 1))
    torch.testing.assert_close(found.cross_entropy, -torch.log(torch.tensor([[0.75, 0.25]])).mean(1, keepdim=True))
    settings = RecoverSettings(generate=1, steps=10, lr=1.0, lr_final=0.1, lr_warmup=0.2)
    rates = [rate_at(settings, step) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[6] == pytest.approx(0.55) and rates[9] > 0.1


def test_text_of_a_file_is_divided_into_windows(exports, tmp_path, capsys):
    text, numbers = tmp_path / "text.jsonl", ("one", "two", "three", "four", "five", "six", "seven", "eight")
    rows = [{"story": f"When Mary and John went to the store, John gave {n} drinks to Mary."} for n in numbers]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [
        exports / "compact",
        *QUICK[:-2],
        "--recover.text",
        text,
        "--recover.field",
        "story",
        "--recover.loss",
        "next_token",
    ]
    assert recovered(*words, "--recover.steps", 10, "--output", tmp_path / "out") == 0
    found = content(tmp_path / "out")
    assert found["after"]["perplexity"][0] < found["before"]["perplexity"][0]
    assert "windows of up to 12 tokens" in capsys.readouterr().out


def test_text_of_an_earlier_recovery_is_not_held_out_in_the_next(exports, tmp_path, capsys):
    text = tmp_path / "text.jsonl"
    rows = [f"Anna met {n} dogs and gave them a ball" for n in range(8)]
    text.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    words = [*QUICK[:-2], "--recover.text", text, "--recover.steps", 1]
    assert recovered(exports / "compact", *words, "--output", tmp_path / "once") == 0
    assert recovered(tmp_path / "once", *words, "--output", tmp_path / "twice") == 0
    capsys.readouterr()
    for name, place in (("once", "a"), ("twice", "b")):
        assert recovered(tmp_path / name, *words, "--recover.seed", 1, "--output", tmp_path / place) == 2
        assert "was recovered on this text divided otherwise" in capsys.readouterr().err


def test_a_recovery_tells_notes_on_its_text_with_remedies_that_it_has(exports, tmp_path, capsys):
    text = tmp_path / "text.jsonl"
    rows = [f"{'<s>' * (n < 2)}Anna met {n} dogs and gave them a ball" for n in range(8)]
    text.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    words = [exports / "compact", *QUICK[:-2], "--recover.text", text, "--recover.steps", 1]
    assert recovered(*words, "--output", tmp_path / "out") == 0
    assert (
        f"note: {text}: 2 of 8 documents begin with '<s>', and the tokenizer adds it once more; leave it out of the texts "
        f"(the first: {text}:1)" in capsys.readouterr().out
    )


def test_another_model_of_the_same_sizes_is_no_base(exports, tmp_path, capsys):
    other = shutil.copytree(Path(bigcircuit.__file__).parent / "embedded/model", tmp_path / "other")
    weights = load_file(other / FILE)
    save_file({name: -value for name, value in weights.items()}, other / FILE, {"format": "pt"})
    words = [exports / "compact", *QUICK, "--model.path", tmp_path / "other", "--output", tmp_path / "out"]
    assert recovered(*words) == 2
    assert "has other embeddings than" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_mistakes_are_one_line_and_leave_nothing(exports, tmp_path, capsys):
    compact, out = exports / "compact", ["--output", tmp_path / "out"]
    for name, text in (("bad", '{"other": "x"}'), ("deep", "[" * 9000), ("half", '{"text": "\\ud800"}')):
        (tmp_path / f"{name}.jsonl").write_text(text + "\n")
    for words, message in (
        ((*out,), "recover takes recover.text or recover.generate, and none is given"),
        ((*QUICK, *out), "recover needs one exported folder"),
        ((tmp_path / "no", *QUICK, *out), "no such folder"),
        ((exports / "run", *QUICK, *out), "export.json"),
        ((exports / "ia3", *QUICK, *out), "is of format ia3, whose weights are not trained"),
        ((compact, *QUICK, "--deepspeed", "zero3", *out), "ZeRO stage 3 divides frozen weights"),
        ((compact, *QUICK, "--output", exports / "run"), "holds other files and no recovery"),
        ((compact, *QUICK, "--output", compact), "is the export itself"),
        ((compact, "--recover.generate", 1, *out), "the test split is empty (1 documents"),
        (
            (compact, "--recover.text", tmp_path / "bad.jsonl", *out),
            "no column text; it has other; name yours in recover.field",
        ),
        ((compact, "--recover.text", tmp_path / "deep.jsonl", *out), "deep.jsonl:1"),
        ((compact, "--recover.text", tmp_path / "half.jsonl", *out), "the model's tokenizer cannot read the corpus"),
        ((compact, "--recover.text", tmp_path / "none.txt", *out), "no such file; set recover.text to a corpus"),
        ((compact, *QUICK, "--recover.tokens", 100000, *out), "recover.tokens is 100000 but the model has"),
        ((compact, *QUICK, "--recover.train", "rows", "--recover.merge", "false", *out), "leave merge out"),
        ((compact, *QUICK, "--recover.held_out", 0.9, *out), "leave no text to train on; make them add up to less"),
        ((compact, *QUICK, "--recover.rank", 100000, *out), "recover.rank is 100,000 but no matrix of"),
    ):
        assert recovered(*words) == 2
        shown = capsys.readouterr().err
        assert message in shown and len(shown.splitlines()) == 1, shown
        assert not (tmp_path / "out").exists()


def test_exports_edited_by_hand_are_refused_in_one_line(exports, tmp_path, capsys):
    def edited(name: str) -> Path:
        return Path(shutil.copytree(exports / "compact", tmp_path / name))

    cut = edited("cut") / FILE
    cut.write_bytes(cut.read_bytes()[:9000])
    whole = edited("whole numbers") / FILE
    save_file({**load_file(whole), "model.ids": torch.arange(3)}, whole, metadata={"format": "pt"})
    listed = edited("list") / "export.json"
    listed.write_text(json.dumps(json.loads(listed.read_text()) | {"recovered": []}))
    renamed = edited("renamed") / "export.json"
    renamed.write_text(json.dumps(json.loads(renamed.read_text()) | {"format": "uniform"}))
    adapter = edited("adapter") / "adapter_config.json"
    adapter.write_text("{}")
    for file, message in (
        (
            renamed,
            "export.json: says uniform, and config.json is of bigcircuit; give the folder that `bigcircuit export`",
        ),
        (adapter, "holds an adapter and no weights; recover the export that it is of again, with recover.merge true"),
        (cut, f"{FILE}: cannot be read (SafetensorError"),
        (whole, "model.ids is I64, which no export writes"),
        (listed, "export.json: recovered: it: input should be an object"),
    ):
        assert recovered(file.parent, *QUICK, "--output", tmp_path / "out") == 2
        shown = capsys.readouterr().err
        assert message in shown and len(shown.splitlines()) == 1, shown
        assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_blamed_and_not_the_rate(exports, tmp_path, capsys):
    other = shutil.copytree(exports / "compact", tmp_path / "other")
    weights = load_file(other / FILE)
    name = next(key for key in weights if "layers.1" in key and key.endswith("o_proj.weight"))
    weights[name][0, 0] = float("nan")
    save_file(weights, other / FILE, {"format": "pt"})
    assert recovered(other, *QUICK, "--output", tmp_path / "out") == 2
    shown = capsys.readouterr().err
    assert "other: its logits are not finite on held-out text before any update; give other weights" in shown


def test_a_recovery_that_another_process_has_finished_meanwhile_is_kept(exports, tmp_path, capsys, monkeypatch):
    words, locked = [exports / "compact", *QUICK, "--output", tmp_path / "out"], RunDir.locked

    @contextmanager
    def after_another(folder):
        monkeypatch.setattr(RunDir, "locked", locked)
        assert recovered(*words) == 0
        with folder.locked():
            yield

    monkeypatch.setattr(RunDir, "locked", after_another)
    assert recovered(*words) == 2
    assert "another process has finished this recovery meanwhile" in capsys.readouterr().err
    assert "after" in content(tmp_path / "out")
