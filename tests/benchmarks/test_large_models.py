"""Folders of models of real shapes: siblings open and have the proportions of the real shape; writing goes on after a kill."""

import signal
import subprocess
import sys
from itertools import combinations
from math import prod

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks import large_models
from benchmarks.large_models import SHAPES, on_meta, sibling, tensors_on_disk, write_folder
from bigcircuit.errors import UserError
from tests.helpers.launch import ENVIRONMENT, ROOT

PARAMETERS = {"llama-8b": 8.03e9, "qwen3-32b": 32.76e9, "llama-70b": 70.55e9, "qwen3-30b-a3b": 30.53e9}
"""As the model cards count them."""
A_LAYER = {"llama-8b": 9, "qwen3-32b": 11, "llama-70b": 9, "qwen3-30b-a3b": 11}
"""Parameters of a decoder layer in transformers: projections and norms; experts are stacked."""
KILLED = """
import os, signal, sys
from pathlib import Path
from benchmarks import large_models
save, calls = large_models.save_file, []
def half(tensors, path, metadata):
    save(tensors, path, metadata)
    calls.append(path)
    if len(calls) == 3:
        os.truncate(path, path.stat().st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
large_models.save_file = half
large_models.main([sys.argv[1], "llama-70b", "--sibling"])
"""
"""Program that is killed while half of its third shard is written."""


@pytest.fixture(scope="module", params=SHAPES)
def written(request, tmp_path_factory):
    """Name of a shape and the folder of its sibling."""
    folder = tmp_path_factory.mktemp("models") / request.param
    assert large_models.main([str(folder), request.param, "--sibling"]) == 0
    return request.param, folder


def test_a_sibling_opens_without_missing_or_unexpected_keys_and_computes_finite_logits(written):
    _, folder = written
    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
    assert not any(report.values()), report
    tokens = torch.tensor([AutoTokenizer.from_pretrained(folder)("Once upon a time").input_ids])
    assert tokens.max() < model.config.vocab_size
    logits = model(tokens).logits
    assert logits.isfinite().all() and logits.std() > 0.01
    assert sum(path.stat().st_size for path in folder.iterdir()) < 10 * 2**20


def sizes(shape, part):
    return [tensor.numel() for name, tensor in on_meta(shape).named_parameters() if part in name]


@pytest.mark.parametrize("name", SHAPES)
def test_a_sibling_has_the_proportions_of_the_real_shape(name):
    real, small = SHAPES[name], sibling(name)
    for shape in (real, small):
        assert {len(sizes(shape, f".layers.{layer}.")) for layer in range(shape.layers)} == {A_LAYER[name]}
    embedding_to_layer = [sizes(shape, "embed_tokens")[0] / sum(sizes(shape, ".layers.0.")) for shape in (real, small)]
    assert embedding_to_layer[1] == pytest.approx(embedding_to_layer[0], rel=0.2)
    assert sum(map(prod, tensors_on_disk(real).values())) == pytest.approx(PARAMETERS[name], rel=1e-3)


def test_the_embedding_of_the_8b_shape_is_larger_than_a_layer():
    for shape in (SHAPES["llama-8b"], sibling("llama-8b")):
        assert sizes(shape, "embed_tokens")[0] > 2 * sum(sizes(shape, ".layers.0."))
    assert sizes(SHAPES["llama-8b"], "embed_tokens") == [525_336_576]
    assert sum(sizes(SHAPES["llama-8b"], ".layers.0.")) == 218_112_000


def test_no_two_layers_nor_experts_are_equal_and_weights_are_as_told(tmp_path):
    list(write_folder(tmp_path, sibling("qwen3-30b-a3b")))
    tensors = {name: values for path in tmp_path.glob("*.safetensors") for name, values in load_file(path).items()}
    for kind in ("self_attn.q_proj.weight", "experts.0.up_proj.weight", "experts.1.up_proj.weight", "layernorm.weight"):
        same = [values for name, values in tensors.items() if name.endswith(kind)]
        assert len(same) >= 4 and not any(torch.equal(*pair) for pair in combinations(same, 2))
    for name, values in tensors.items():
        assert values.dtype == torch.bfloat16
        assert values.float().mean().item() == pytest.approx(float("norm" in name), abs=0.02)
    assert tensors["lm_head.weight"].float().std().item() == pytest.approx(0.02, rel=0.02)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_killed_run_goes_on_to_the_bytes_of_an_undisturbed_one(tmp_path):
    assert large_models.main([str(tmp_path / "whole"), "llama-70b", "--sibling"]) == 0
    folder = tmp_path / "killed"
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT, env=ENVIRONMENT, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
    assert len(kept) == 2 and list(folder.glob(".*.tmp"))
    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.from_pretrained(folder)
    lines = list(write_folder(folder, sibling("llama-70b")))
    assert [line.endswith("kept") for line in lines] == [True, True, False, False, False, False]
    assert contents(folder) == contents(tmp_path / "whole")
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}.items()


def test_a_shard_cut_short_is_written_again(tmp_path):
    list(write_folder(tmp_path, sibling("llama-70b")))
    whole, shard = contents(tmp_path), tmp_path / "model-00002-of-00006.safetensors"
    shard.write_bytes(whole[shard.name][:-100])
    list(write_folder(tmp_path, sibling("llama-70b")))
    assert contents(tmp_path) == whole


def test_fewer_layers_are_the_first_ones(tmp_path):
    assert large_models.main([str(tmp_path / "two"), "llama-70b", "--sibling", "--layers", "2"]) == 0
    list(write_folder(tmp_path / "four", sibling("llama-70b")))
    two, four = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("two", "four"))
    assert {name.split(".")[2] for name in two if ".layers." in name} == {"0", "1"}
    assert all(torch.equal(values, four[name]) for name, values in two.items() if ".layers." in name)


def test_an_unknown_shape_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as refused:
        large_models.main([str(tmp_path / "x"), "llama-9b"])
    assert refused.value.code == 2 and "llama-8b" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_what_does_not_fit_is_one_line(tmp_path, capsys):
    assert large_models.main([str(tmp_path / "a"), "llama-70b", "--sibling"]) == 0
    assert large_models.main([str(tmp_path / "a"), "llama-8b", "--sibling"]) == 2
    assert "holds a model of another shape" in capsys.readouterr().err
    with pytest.raises(UserError, match="vocabulary of 1030 is larger than the model's 500"):
        list(write_folder(tmp_path / "b", sibling("llama-70b")._replace(vocabulary=500)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no tokenizer.json"):
        list(write_folder(tmp_path / "b", sibling("llama-70b"), tmp_path / "empty"))
