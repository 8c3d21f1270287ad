"""Weights in pieces: what each rank holds, how often a layer is gathered, and that no stage changes the gates."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.tiny_types import tiny_config
from bigcircuit.config.schema import ModelConfig
from bigcircuit.errors import UserError
from bigcircuit.model.deepspeed_config import read_deepspeed, with_auto_values
from bigcircuit.model.granularity import GATED
from bigcircuit.model.load import skeleton
from bigcircuit.model.resolve import resolve_model
from tests.helpers.launch import DEEPSPEED_CONFIGS, ENVIRONMENT, ROOT, launch, option_words
from tests.helpers.short_runs import QUICK

LAYERS = 6


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What both ranks report of a bfloat16 Llama of 60M parameters."""
    folder = tmp_path_factory.mktemp("model")
    config = LlamaConfig(
        vocab_size=1000, hidden_size=768, intermediate_size=3072, num_hidden_layers=LAYERS, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=128,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    launch(2, "-m", "tests.helpers.zero3_rank", str(folder), str(DEEPSPEED_CONFIGS / "zero3.json"), "bfloat16")
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]


def test_each_rank_holds_half_and_never_had_the_whole(seen):
    for rank in seen:
        assert rank["mine"] == pytest.approx(rank["whole"] / 2, rel=1e-3)
        assert rank["peak_loading"] < 0.05 * rank["whole"], "pieces stay in the mapped files"
        assert rank["held"] == rank["held_after"] == 0, "nothing stays gathered between passes"
        assert rank["peak_loading"] < 0.85 * rank["whole"], (
            "loading keeps this rank's pieces and one parameter at a time"
        )
        assert rank["peak_update"] < 0.85 * rank["whole"], "an update holds two gathered layers at most"


def test_a_layer_is_gathered_once_forward_and_once_backward_for_both_streams_and_all_members(seen):
    for rank in seen:
        layers = {name: count for name, count in rank["gathers"].items() if ".layers." in name}
        assert len(layers) == LAYERS * 9
        assert set(layers.values()) == {2}


def test_gates_stay_whole_in_float32_and_nothing_else_is_trained(seen):
    for rank in seen:
        assert rank["model_dtypes"] == ["torch.bfloat16"]
        assert rank["gates"]["dtypes"] == ["torch.float32"] and rank["gates"]["whole"]
        assert rank["trained"] == []
        assert rank["engine_optimizer"] == "DeepSpeedZeRoOffload", "ZeRO keeps no optimizer state"
    assert seen[0]["gates"] == seen[1]["gates"]


# Hard-concrete gates draw noise, which must not depend on the ranks either.
RUN = {
    **QUICK,
    "gates.parametrisation": "hard_concrete",
    "train.steps": 30,
    "train.save_every": 30,
    "train.validate_every": 30,
    "train.micro_batch_size": 2,
}
STAGES = ["zero0", "zero1", "zero2", "zero3", "zero3_offload_cpu"]


def gates_after(folder: Path) -> dict[str, torch.Tensor]:
    state = load_file(max(folder.glob("checkpoints/*/state.safetensors")))
    return {name: values for name, values in state.items() if ".log_alpha." in name}


@pytest.mark.parametrize(("ranks", "stages"), [(2, STAGES), (4, ["zero0", "zero3"])])
def test_neither_ranks_nor_stages_change_the_gates(tmp_path, alone, ranks, stages):
    runs = [
        {**RUN, "output": str(tmp_path / name), "deepspeed": str(DEEPSPEED_CONFIGS / f"{name}.json")} for name in stages
    ]
    runs[-1]["train.store_memory"] = 0  # corrupted activations in a file that the ranks share
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    launch(ranks, "-m", "tests.helpers.run_series", str(tmp_path / "runs.json"))
    for name in stages:
        found = gates_after(tmp_path / name)
        assert found.keys() == alone.keys()
        for gate, values in alone.items():
            assert torch.equal(values, found[gate]), f"{name}: {gate}"


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """Gates after 30 steps in one process, and the same under ZeRO-3 without a launcher, where nothing is compiled."""
    folder = tmp_path_factory.mktemp("alone")
    plain = {name: value for name, value in ENVIRONMENT.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    for name, more in (("whole", {}), ("pieces", {"deepspeed": str(DEEPSPEED_CONFIGS / "zero3.json")})):
        words = option_words({**RUN, **more, "output": str(folder / name)})
        done = subprocess.run(
            [sys.executable, "-m", "bigcircuit", "prune", *words], cwd=ROOT, capture_output=True, text=True,
            env={**plain, "TORCH_EXTENSIONS_DIR": str(folder / "compiled"), "PATH": str(Path(sys.executable).parent)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    assert not (folder / "compiled").exists()
    whole, pieces = gates_after(folder / "whole"), gates_after(folder / "pieces")
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    return whole


@pytest.mark.parametrize("ranks", [1, 2])
def test_nvme_reads_the_files_of_the_checkpoint_and_writes_nothing(tmp_path, alone, ranks):
    settings = str(DEEPSPEED_CONFIGS / "zero3_offload_nvme.json")
    runs = [{**RUN, "output": str(tmp_path / "run"), "deepspeed": settings}]
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    launch(ranks, "-m", "tests.helpers.run_series", str(tmp_path / "runs.json"))
    assert {path.name for path in tmp_path.iterdir()} == {"run", "runs.json"}
    found = gates_after(tmp_path / "run")
    assert all(torch.equal(values, found[gate]) for gate, values in alone.items())


def small_llama(folder: Path, dtype: torch.dtype = torch.float32, **sizes: int) -> dict[str, Any]:
    """Save a small Llama with the tokenizer of the embedded model; returns settings of runs with it."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_key_value_heads": 2} | sizes
    config = LlamaConfig(
        vocab_size=1030,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        **sizes,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((ROOT / "bigcircuit/embedded/model" / name).read_bytes())
    return {**RUN, "model.path": str(folder), "target.total": 40}


def stages_agree(folder: Path, shared: dict[str, Any], names: list[str]) -> None:
    """Run stages on two ranks and compare the gates of each with those of the first, to the bit."""
    runs = [{**shared, "output": str(folder / name), "deepspeed": str(DEEPSPEED_CONFIGS / f"{name}.json")}
            for name in names]  # fmt: skip
    (folder / "runs.json").write_text(json.dumps(runs))
    launch(2, "-m", "tests.helpers.run_series", str(folder / "runs.json"))
    whole, *pieces = (gates_after(folder / name) for name in names)
    for found in pieces:
        assert all(torch.equal(values, found[gate]) for gate, values in whole.items())


def test_an_adapter_is_divided_too(tmp_path):
    shared = small_llama(tmp_path / "model")
    adapted = get_peft_model(
        LlamaForCausalLM.from_pretrained(tmp_path / "model"),
        LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    shared |= {"model.adapter": str(tmp_path / "adapter")}
    stages_agree(tmp_path, shared, ["zero0", "zero3", "zero3_offload_nvme"])


def test_weights_that_need_a_cast_are_divided_too(tmp_path):
    shared = small_llama(tmp_path / "model", torch.bfloat16) | {"model.dtype": "float32"}
    stages_agree(tmp_path, shared, ["zero0", "zero3", "zero3_offload_cpu"])


def misaligned(path: Path) -> None:
    """Write a safetensors file again with its tensors 8 bytes behind a multiple of 16."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].rstrip()
    header += b" " * (-len(header) % 16)  # the data starts at 8 + this length
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])


@pytest.mark.parametrize(("tokens", "differing", "micro_batch_size"), [(3, 1, 2), (4, 3, 1)])
def test_products_of_few_rows_have_the_same_bits_in_pieces(tmp_path, tokens, differing, micro_batch_size):
    """Two rows with a gradient that is not contiguous, and one row of weights at another address."""
    shared = small_llama(tmp_path / "model", hidden_size=128, intermediate_size=256, num_key_value_heads=4)
    misaligned(tmp_path / "model/model.safetensors")
    prompts = [[10 + row, *range(6, 4 + tokens), 50 + row] for row in range(24)]
    corrupted = [[90 if at == differing else token for at, token in enumerate(prompt)] for prompt in prompts]
    lines = [{"clean": clean, "corrupted": other, "answers": [[9]], "wrong_answers": [[10]]}
             for clean, other in zip(prompts, corrupted, strict=True)]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    del shared["task.size"]
    shared |= {"task.name": "pairs", "task.path": str(tmp_path / "pairs.jsonl"), "train.steps": 4, "train.save_every": 4,
               "train.validate_every": 4, "train.micro_batch_size": micro_batch_size, "target.total": 100}  # fmt: skip
    stages_agree(tmp_path, shared, ["zero0", "zero3"])


def test_what_is_in_the_way_of_reading_from_files_is_one_line(tmp_path):
    model = small_llama(tmp_path / "model", torch.bfloat16)["model.path"]
    nvme = str(DEEPSPEED_CONFIGS / "zero3_offload_nvme.json")
    with pytest.raises(UserError, match="offload_param.device nvme reads weights as they are stored, which is bfloat16, and "
                       "model.dtype is float32; set model.dtype to bfloat16 or offload_param.device to cpu"):  # fmt: skip
        resolve_model(ModelConfig(path=model), nvme)
    with pytest.raises(UserError, match="model.weights stream is for weights on one device; with ZeRO stage 3"):
        resolve_model(ModelConfig(path=model, dtype="bfloat16", weights="stream"), nvme)
    state = load_file(Path(model) / "model.safetensors")
    state["model.norm.weight"] = state["model.norm.weight"].float()
    save_file(state, Path(model) / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="which is several dtypes, and .*; set model.weights to resident"):
        resolve_model(ModelConfig(path=model, dtype="bfloat16", weights="stream"))
    (Path(model) / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no safetensors files are on this machine to read weights from"):
        resolve_model(ModelConfig(path=model, dtype="bfloat16", weights="stream"))


def test_an_error_of_deepspeed_is_one_line_that_names_its_file(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(
        '{"zero_optimization": {"stage": 3, "stage3_max_live_parameters": 1, "reduce_bucket_size": "lots"}}'
    )
    words = option_words({**RUN, "deepspeed": str(path), "output": str(tmp_path / "run")})
    done = subprocess.run(
        [sys.executable, "-m", "bigcircuit", "prune", *words], cwd=ROOT, capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode == 2, done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith(f"bigcircuit: deepspeed {path}: DeepSpeed stopped in ") and "zero3.json" in line


TRAINER = {
    "fp16": {"enabled": False, "loss_scale": 0},
    "bf16": {"enabled": True},
    "optimizer": {"type": "AdamW", "params": {"lr": "auto"}},
    "scheduler": {"type": "WarmupLR"},
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": "auto",
        "stage3_param_persistence_threshold": "auto",
        "zero_quantized_weights": True,
        "zero_quantized_nontrainable_weights": False,
    },
    "gradient_clipping": "auto",
    "steps_per_print": 2000,
}
"""What people have from transformers' Trainer."""


def test_all_that_has_to_be_taken_out_is_named_at_once(tmp_path):
    path = tmp_path / "trainer.json"
    path.write_text(json.dumps(TRAINER))
    with pytest.raises(UserError) as refused:
        read_deepspeed(str(path))
    words = str(refused.value).removeprefix(f"deepspeed {path}: take out ")
    assert re.findall(r"(?:^|, )(\w+) \(", words) == [
        "optimizer", "scheduler", "bf16", "gradient_clipping", "zero_quantized_weights",
    ]  # fmt: skip
    left = {name: value for name, value in TRAINER.items() if name not in words}
    left["zero_optimization"] = {k: v for k, v in TRAINER["zero_optimization"].items() if k != "zero_quantized_weights"}
    path.write_text(json.dumps(left))
    settings = read_deepspeed(str(path))
    assert settings is not None and "fp16" not in settings, "what is not enabled is as if it were not there"
    zero = with_auto_values(settings, skeleton(ModelConfig()))["zero_optimization"]
    assert "auto" not in zero.values() and zero["overlap_comm"] is True
    assert "reduce_bucket_size" not in zero and zero["stage3_prefetch_bucket_size"] > 0


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"zero_optimization": {"stage": 3, "offload_param": "cpu"}}', "offload_param is 'cpu'; set it to "),
        ('{"zero_optimization": {"stage": 3, "offload_param": [1]}}', "offload_param is .1.; set it to "),
        ("[" * 100_000, "not a JSON file"),
        (
            '{"zero_optimization": {"stage": 3}, "zero_optimization": {"stage": 0}}',
            r"not a JSON file \(an object has the key 'zero_optimization' more than once\)",
        ),
        ("[]", "zero_optimization.stage is None"),
    ],
)
def test_a_file_of_another_shape_is_refused(tmp_path, text, problem):
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(UserError, match=f"ds.json: {problem}"):
        read_deepspeed(str(tmp_path / "ds.json"))


@pytest.mark.parametrize("name", sorted(path.stem for path in DEEPSPEED_CONFIGS.glob("*.json")))
def test_every_config_that_comes_with_us_is_read(name):
    settings = read_deepspeed(str(DEEPSPEED_CONFIGS / f"{name}.json"))
    assert (settings is not None) == name.startswith("zero3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a JSON file"),
        ("[]", "zero_optimization.stage is None; set it to 0, 1, 2 or 3"),
        ('{"zero_optimization": {"stage": 4}}', "zero_optimization.stage is 4"),
        ('{"zero_optimization": {"stage": 3}, "bf16": {"enabled": true}}', "take out bf16 .*set model.dtype"),
        ('{"zero_optimization": {"stage": 0}, "optimizer": {}}', "take out optimizer .*train.lr"),
        ('{"zero_optimization": {"stage": 3}, "train_batch_size": 8}', "take out train_batch_size "),
        (
            '{"zero_optimization": {"stage": 3, "offload_param": {"device": "disk"}}}',
            "offload_param.device is 'disk'; set it to none, cpu or nvme",
        ),
    ],
)
def test_a_wrong_config_is_one_line(tmp_path, content, message):
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_deepspeed(str(path))
    with pytest.raises(UserError, match="no such file; name yours, or one that comes with the package"):
        read_deepspeed(str(tmp_path / "missing.json"))


def test_mixtures_latent_attention_and_hybrids_are_divided_too(tmp_path):
    runs = []
    neurons = {"target.expert": 6, "target.expert_neuron": 40, "gates.granularities": [*GATED, "expert_neuron"]}
    for name, more in (("deepseek_v3", {"target.expert": 6}), ("falcon_h1", {}), ("qwen3_moe", neurons)):
        shared = small_llama(tmp_path / name) | more | {"train.steps": 4}
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(tiny_config(name, vocab_size=1030)).save_pretrained(tmp_path / name)
        runs += [{**shared, "output": str(tmp_path / f"{name}_{stage}"), "deepspeed": str(DEEPSPEED_CONFIGS / f"{stage}.json")}
                 for stage in ("zero0", "zero3")]  # fmt: skip
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    launch(2, "-m", "tests.helpers.run_series", str(tmp_path / "runs.json"))
    for whole, pieces in zip(runs[::2], runs[1::2], strict=True):
        expected, found = gates_after(Path(whole["output"])), gates_after(Path(pieces["output"]))
        assert all(torch.equal(values, found[gate]) for gate, values in expected.items()), whole["output"]
