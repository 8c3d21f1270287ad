"""Final circuits and their held-out scores, against the plain model edited by hand."""

import hashlib
import json

import pytest
import torch

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load
from bigcircuit.data.dataset import load_task
from bigcircuit.gates.discretise import count, discretise
from bigcircuit.model.load import EMBEDDED
from bigcircuit.train.final_circuits import RunResult
from tests.helpers.edited_models import edited
from tests.helpers.short_runs import QUICK, run

SETTINGS = {
    "ablation.kind": "zero",
    "task.size": 40,
    "target.total": None,
    "population.members": [{"target.total": 600}, {"target.head": 9, "target.mlp_neuron": 150, "train.seed": 4}],
}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """Two members of different targets under zero ablation; each circuit is open where its mask is and 0 elsewhere."""
    values = {key.replace(".", "__"): value for key, value in SETTINGS.items()}
    return run(tmp_path_factory.mktemp("final") / "run", **values)


@pytest.fixture(scope="module")
def summary(pruned):
    return json.loads(pruned.summary.read_text())


@pytest.fixture(scope="module")
def held_out(embedded):
    frozen, tokenizer = embedded
    return load_task(load(None, {**QUICK, **SETTINGS}).task, tokenizer, frozen.model.config).splits["test"]


def last_logits(frozen, prompt, masks):
    """Logits after a prompt, [V], with the activations of closed nodes at 0; masks of no circuit are None."""
    leaves = {"attention": "attention_neuron", "mlp": "mlp_neuron"}

    def close(layer, site, activation):
        if masks is None or site not in leaves:
            return activation
        return activation * masks[leaves[site]][layer, : activation.shape[-1]]

    with torch.no_grad(), edited(frozen, close):
        return frozen.model(input_ids=torch.tensor([prompt]), use_cache=False).logits[0, -1].double()


def by_hand(frozen, pairs, masks):
    """Mean scores over pairs whose answers are single tokens."""
    kl, difference, accuracy, match = [], [], [], []
    for pair in pairs:
        full, found = last_logits(frozen, pair.clean, None), last_logits(frozen, pair.clean, masks)
        kl.append((full.softmax(-1) * (full.log_softmax(-1) - found.log_softmax(-1))).sum())
        right, wrong = (
            found[[token for (token,) in answers]].logsumexp(-1) for answers in (pair.answers, pair.wrong_answers)
        )
        difference.append(right - wrong)
        accuracy.append(right > wrong)
        match.append(full.argmax() == found.argmax())
    means = (torch.stack(values).double().mean().item() for values in (kl, difference, accuracy, match))
    return dict(zip(("kl", "logit_difference", "accuracy", "exact_match"), means, strict=True))


def test_held_out_scores_are_those_of_the_model_edited_by_hand(pruned, summary, held_out, embedded):
    frozen, _ = embedded
    masks = [Circuit.load(pruned.path / row["circuit"]).masks for row in summary["members"]]
    nothing = {name: torch.zeros_like(mask) for name, mask in masks[0].items()}
    for row, kept in (
        *zip((member["scores"] for member in summary["members"]), masks, strict=True),
        (summary["empty"], nothing),
        (summary["full"], None),
    ):
        for name, value in by_hand(frozen, held_out, kept).items():
            assert row[name]["mean"] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert summary["pairs"]["test"] == len(held_out)
    assert 0.01 < summary["members"][0]["scores"]["kl"]["mean"] < summary["empty"]["kl"]["mean"]


def test_recovered_is_measured_between_the_empty_circuit_and_the_full_model(summary):
    empty, full = (summary[key]["logit_difference"]["mean"] for key in ("empty", "full"))
    for member in summary["members"]:
        scores = member["scores"]
        expected = (scores["logit_difference"]["mean"] - empty) / (full - empty)
        assert scores["recovered"]["mean"] == pytest.approx(expected, rel=1e-5)


def test_masks_are_the_discretised_gates_of_the_file_and_have_the_asked_sizes(pruned, summary, embedded):
    frozen, _ = embedded
    for member, targets in zip(summary["members"], ({"total": 600}, {"head": 9, "mlp_neuron": 150}), strict=True):
        circuit = Circuit.load(pruned.path / member["circuit"])
        again = discretise(circuit.log_alpha, frozen.shapes, targets)
        assert all(torch.equal(mask, again[name]) for name, mask in circuit.masks.items())
        assert member["kept"] == count(circuit.masks)
        assert {name: member["kept"][name] for name in targets} == member["targets"] == targets


def test_metadata_name_the_model_the_pairs_and_the_member(pruned, summary):
    for index, member in enumerate(summary["members"]):
        metadata = Circuit.load(pruned.path / member["circuit"]).metadata
        weights = (EMBEDDED / "model.safetensors").read_bytes()
        assert metadata["model_weights_sha256"] == hashlib.sha256(weights).hexdigest()
        assert metadata["seed"] == str(member["seed"]) == str([0, 4][index])
        assert json.loads(metadata["targets"]) == member["targets"]
        assert json.loads(metadata["scores"]) == {"zero": member["scores"]}
        assert int(metadata["step"]) == member["best_step"]


def test_a_member_alone_is_its_row_of_the_population():
    rows = [{"member": 0, "kept": 3}, {"member": 1, "kept": 5}]
    both = RunResult(["first", "second"], rows, ["a", "b"], {"task": "ioi"})
    alone = both.alone(1)
    assert alone == RunResult(["second"], [{"member": 0, "kept": 5}], ["b"], {"task": "ioi"})
    assert both.members[1]["member"] == 1, "the population keeps its numbers"
    assert alone.summary(["circuit.safetensors"], 1.26) == {
        "task": "ioi", "members": [{"member": 0, "kept": 5, "circuit": "circuit.safetensors"}], "seconds": 1.3,
    }  # fmt: skip
