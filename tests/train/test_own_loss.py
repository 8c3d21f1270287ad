"""A loss of the user: KL written by hand trains what KL trains, and what cannot be a loss is refused before weights are loaded."""

import importlib
import json
import sys

import pytest
import torch

import bigcircuit
from bigcircuit.cli import RUNS, answer
from bigcircuit.config.load import load
from bigcircuit.config.own_code import allow
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.model.weight_files import EMBEDDED
from bigcircuit.train.fingerprint import check_same_fingerprint
from bigcircuit.train.own_loss import loss_sha256
from bigcircuit.train.resolve import resolve
from tests.helpers.own_module import module_in
from tests.helpers.short_runs import QUICK

MODULE = """
import torch

def argmax(logits, batch, reference):
    return (logits.argmax(-1) != reference.argmax(-1)).float()[: len(batch.ids)]

def by_position(logits, batch, reference):
    return logits

def number(logits, batch, reference):
    return 0.5

def failing(logits, batch, reference):
    raise KeyError("nothing")
"""


def divergence(logits, batch, reference):
    """KL of the full model and the circuit by torch's own function, mean over answer positions."""
    values = torch.nn.functional.kl_div(
        logits.log_softmax(-1), reference.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    return torch.zeros(len(batch.ids)).index_add(0, batch.example_of_score, values * batch.kl_weight)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of a name that no other test has, in the current folder."""
    yield from module_in(tmp_path, monkeypatch, "loss", MODULE)


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_kl_as_a_function_trains_what_kl_trains(tmp_path):
    settings = {key: value for key, value in QUICK.items() if key != "task.name"}
    usual = bigcircuit.find(str(EMBEDDED), None, "ioi", folder=tmp_path / "kl", quiet=True, **settings)
    own = bigcircuit.find(
        str(EMBEDDED), None, "ioi", folder=tmp_path / "own", quiet=True, loss=divergence, **{**settings, "train.kl": 0}
    )
    assert own.circuit.jaccard(usual.circuit) > 0.99 and own.circuit.sizes() == usual.circuit.sizes()
    trained = [row for row in rows(tmp_path / "own") if "loss" in row]
    validated = [row for row in rows(tmp_path / "own") if "validation.loss" in row]
    assert trained and validated
    for row in trained:
        assert row["loss"] == pytest.approx(row["kl"], rel=1e-4)
    for row in validated:
        assert row["validation.objective"] == pytest.approx(row["validation.kl"], rel=1e-4)
        assert row["validation.loss"] == pytest.approx(row["validation.kl"], rel=1e-4)
    assert (
        "loss" not in own.scores and json.loads((tmp_path / "own/config.json").read_text())["config"]["train"]["loss"]
    )


@pytest.mark.parametrize(
    "function, message",
    [
        ("argmax", "does not depend on the logits in a differentiable way"),
        ("by_position", r"returned \[\d+, \d+\] for 2 pairs"),
        ("number", "returned float for 2 pairs"),
        ("failing", "raised KeyError: 'nothing'; mend the function"),
        ("absent", "has no function absent"),
    ],
)
def test_what_is_no_loss_is_refused_before_weights_are_loaded(module, function, message):
    allow([module])
    with pytest.raises(UserError, match=f"train.loss {module}:{function}: .*{message}"):
        resolve(load(None, {**QUICK, "train.loss": f"{module}:{function}"}), Ranks())


def test_a_config_names_a_loss_only_where_it_is_allowed(module, capsys):
    words = ["--train.loss", f"{module}:number", "--target.total", "0.1"]
    assert answer(RUNS["check"], words) == 2
    assert f"train.loss {module}:number: is code of the module {module}" in capsys.readouterr().err
    assert module not in sys.modules
    assert answer(RUNS["check"], [*words, "--allow", module]) == 2
    assert "returned float" in capsys.readouterr().err


def test_a_name_that_no_package_declares_is_refused():
    with pytest.raises(
        UserError, match="train.loss mine: is no function; write module:function, or .* bigcircuit.losses"
    ):
        resolve(load(None, {**QUICK, "train.loss": "mine"}), Ranks())
    with pytest.raises(UserError, match="loss: .* has no name; give a function made by def"):
        bigcircuit.find(str(EMBEDDED), None, "ioi", loss=lambda *_: 0, quiet=True)


def test_a_run_is_not_resumed_with_another_source(module):
    allow([module])
    one, two = (loss_sha256(f"{module}:{name}") for name in ("number", "argmax"))
    with pytest.raises(UserError, match="other source of train.loss"):
        check_same_fingerprint("run", {"source of train.loss": one}, {"source of train.loss": two})


def test_the_hash_of_a_loss_sees_what_the_function_uses_of_its_file(tmp_path, monkeypatch):
    def seen(text: str) -> str:
        (tmp_path / "used_loss.py").write_text(text)
        sys.modules.pop("used_loss", None)
        importlib.invalidate_caches()
        return loss_sha256("used_loss:loss")

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("BIGCIRCUIT_ALLOW", "used_loss")
    text = (
        "WEIGHT = {}\ndef weighted(x): return x * WEIGHT\ndef loss(logits, batch, reference): return weighted(logits)\n"
    )
    assert seen(text.format(1)) == seen(text.format(1)) != seen(text.format(2))
    text = "def make(weight):\n    def inner(logits, batch, reference): return logits * weight\n    return inner\nloss = make(2)\n"
    module = importlib.import_module("used_loss")
    (tmp_path / "used_loss.py").write_text(text)
    importlib.reload(module)
    one = loss_sha256("used_loss:loss")
    module.loss = module.make(3)
    assert loss_sha256("used_loss:loss") != one
    sys.modules.pop("used_loss")
