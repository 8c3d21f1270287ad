"""The table of ablation kinds: its entries are all that config, files, passes, memory, evaluation and report know of a kind."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from bigcircuit.ablation.ablation import Ablation, Moments, Tokens
from bigcircuit.ablation.kinds import KINDS, TENSORS, config_kinds, full_name
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.evaluate import evaluate_circuits
from bigcircuit.io.files import tensor_sha256
from tests.helpers.short_runs import FAST, QUICK, run

NOISE = {"ablation__kind": "noise"}


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.tensors])
def test_an_ablation_without_its_tensors_cannot_be_made(name):
    whole = {part: {"mlp": torch.zeros(1, 2, 1, 3)} for part in KINDS[name].tensors}
    Ablation(name, **whole)
    for part in whole:
        with pytest.raises(ValueError, match=f"ablation {name} needs {part}; measure"):
            Ablation(name, **{other: found for other, found in whole.items() if other != part})


def test_kinds_of_the_config_and_their_variants_are_the_table():
    assert [
        full_name(kind, flag) for kind in config_kinds() for flag in (False, True) if full_name(kind, flag) in KINDS
    ] == list(KINDS)
    assert all(set(kind.tensors) <= set(TENSORS) for kind in KINDS.values())
    assert all(kind.description and kind.label for kind in KINDS.values())


def test_noise_is_the_mean_plus_the_deviation_times_the_noise_of_the_token():
    moments = Moments(
        {"mlp": torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]])}, {"mlp": torch.tensor([[0.5, 0.0], [2.0, 1.0]])}
    )
    ablation = moments.ablation("noise")
    tokens = Tokens(torch.arange(400).unsqueeze(0), torch.arange(50))
    first = ablation.at("mlp", 0, 2, tokens)
    assert first.shape == (1, 50, 400, 2)
    assert (first[..., 1] == 2).all()
    assert first[..., 0].mean() == pytest.approx(1, abs=0.02)
    assert first[..., 0].std() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(first, ablation.at("mlp", 0, 2, tokens))
    assert not torch.equal(first, ablation.reseeded(1).at("mlp", 0, 2, tokens))
    assert torch.equal(ablation.reseeded(0).at("mlp", 0, 2, tokens), first)
    assert KINDS["zero"].sample is None and Ablation("zero").reseeded(3) == Ablation("zero")


def test_a_run_under_noise_resumes_exactly_writes_all_its_tensors_and_is_scored_the_same_from_its_file(tmp_path):
    whole = run(tmp_path / "whole", **NOISE)
    stopped = run(tmp_path / "stopped", **NOISE)
    for path in (stopped.summary, stopped.path / "circuit.safetensors"):
        path.unlink()
    for folder in stopped.checkpoints.glob("step-000012"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    resumed = run(tmp_path / "stopped", **NOISE)
    one, other = ((folder.path / "circuit.safetensors").read_bytes() for folder in (whole, resumed))
    assert one == other
    with safe_open(whole.path / "circuit.safetensors", "pt") as file:
        found = {name for name in file.keys() if name.startswith("ablation")}  # noqa: SIM118
        assert file.metadata()["ablation"] == "noise"
    assert found == {f"{prefix}.{site}" for prefix in TENSORS.values() for site in ("attention", "mlp")}
    result = evaluate_circuits([str(whole.path)], EvaluationSettings(**FAST, output=str(tmp_path / "e")), Ranks())
    summary = json.loads(whole.summary.read_text())
    assert result.circuits[0].ablations["noise"].circuit["kl"].mean == summary["members"][0]["scores"]["kl"]["mean"]
    assert result.circuits[0].ablations["noise"].means.in_file
    assert KINDS["noise"].label in whole.report.read_text()


def test_training_draws_fresh_noise_in_every_update_and_checkpointing_draws_it_again(tmp_path):
    plain, again = (
        run(tmp_path / name, **NOISE, train__checkpointing=flag) for name, flag in (("plain", False), ("again", True))
    )
    one, other = ((folder.path / "circuit.safetensors").read_bytes() for folder in (plain, again))
    assert one == other


def test_a_member_finds_the_same_alone_and_in_company_under_noise(tmp_path):
    alone = run(tmp_path / "alone", **NOISE, train__seed=1)
    together = run(tmp_path / "together", **NOISE, population__seeds=2)
    one, other = (
        Circuit.load(folder.path / name)
        for folder, name in ((alone, "circuit.safetensors"), (together, "circuits/1.safetensors"))
    )
    assert all(torch.equal(one.log_alpha[name], values) for name, values in other.log_alpha.items())


def test_a_file_that_lacks_one_tensor_of_its_ablation_is_refused_and_one_without_any_is_measured_anew(tmp_path):
    made = run(tmp_path / "run", **NOISE).path / "circuit.safetensors"
    rewrite(made, tmp_path / "some.safetensors", lambda name: name != "ablation_deviation.mlp")
    with pytest.raises(
        UserError, match=r"some\.safetensors: tensor ablation_deviation\.mlp is missing.*noise ablation"
    ):
        Circuit.load(tmp_path / "some.safetensors")
    rewrite(made, tmp_path / "none.safetensors", lambda name: not name.startswith("ablation"))
    bare = Circuit.load(tmp_path / "none.safetensors")
    assert bare.ablation is None and bare.ablation_name == "noise"
    (tmp_path / "config.yaml").write_text("task: {name: ioi, size: 80}\n")
    result = evaluate_circuits(
        [str(tmp_path / "none.safetensors")],
        EvaluationSettings(**FAST, output=str(tmp_path / "e")),
        Ranks(),
        config=str(tmp_path / "config.yaml"),
    )
    assert not result.circuits[0].ablations["noise"].means.in_file


def rewrite(path, other, keep):
    """Copy a circuit file with some of its tensors and right hashes."""
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if keep(name)}  # noqa: SIM118
        metadata = file.metadata()
    metadata["sha256"] = json.dumps({name: tensor_sha256(tensor) for name, tensor in tensors.items()})
    save_file(tensors, other, metadata)


def test_memory_is_predicted_for_every_kind_without_weights(tmp_path):
    from bigcircuit.memory.estimate import Workload, estimate
    from bigcircuit.train.resolve import resolve

    sizes = {}
    for name in KINDS:
        kind, per_position = (name.removesuffix("_per_position"), name.endswith("_per_position"))
        config = load(
            None, {**QUICK, "output": str(tmp_path), "ablation.kind": kind, "ablation.per_position": per_position}
        )
        resolved = resolve(config, Ranks())
        sizes[name] = estimate(resolved, Workload.of(resolved.data.splits, 1), is_gpu=False).allocated
    assert sizes["noise"]["ablation constants"] == 2 * sizes["mean"]["ablation constants"]
    assert "ablation constants" not in sizes["zero"]


ONE_MORE = """
import sys
from bigcircuit.ablation import kinds
kinds.KINDS["negative_mean"] = kinds.AblationKind(
    description="its mean with the other sign", label="negative mean", tensors=("constants", "deviations"),
    sample=lambda constants, deviations, noise: -constants + 0 * noise)
from bigcircuit.cli import main
sys.argv = ["bigcircuit", *sys.argv[1:]]
main()
"""


def test_one_entry_more_works_in_training_files_evaluation_memory_report_and_help(tmp_path):
    def call(*words):
        done = subprocess.run([sys.executable, "-c", ONE_MORE, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    settings = {**QUICK, "train.steps": 6, "ablation.kind": "negative_mean"}
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    assert "negative_mean" in call("prune", "--help", "ablation")
    assert "ablation constants" in call("check", *words)
    call("prune", *words, "--output", str(tmp_path / "run"))
    fast = [word for key, value in FAST.items() for word in (f"--{key}", str(value).strip("[]"))]
    said = call("evaluate", str(tmp_path / "run"), *fast, "--ablations", "negative_mean,zero")
    assert "negative_mean ablation" in said
    kl = json.loads((tmp_path / "run/summary.json").read_text())["members"][0]["scores"]["kl"]["mean"]
    evaluated = json.loads((tmp_path / "run/evaluation.json").read_text())["circuits"][0]["ablations"]
    assert evaluated["negative_mean"]["circuit"]["kl"]["mean"] == kl
    assert "negative mean" in (tmp_path / "run/report.html").read_text()


def test_a_run_under_noise_is_not_one_under_the_mean(tmp_path):
    circuits = [
        Circuit.load(run(tmp_path / kind, ablation__kind=kind).path / "circuit.safetensors")
        for kind in ("noise", "mean")
    ]
    assert any(not torch.equal(circuits[0].log_alpha[name], values) for name, values in circuits[1].log_alpha.items())
