"""The benchmark of large models, with a tiny one on the CPU; and what only a GPU can show of exactness."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.config.load import load
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.forward.reference_logits import ReferenceLogits
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.noise import Noise
from bigcircuit.train.step import update

ROOT = Path(__file__).parents[2]
CASE = gpu.Case("tiny", stage=0, batch=2, tokens=12, checkpointing=False)
CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is here")


def command(*words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "benchmarks/gpu.py", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def is_measured(row: gpu.Row) -> bool:
    return all(value is not None and value > 0 for value in (row.floor, row.update, row.ratio))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_rows_have_figures(checkpointing):
    case = CASE._replace(checkpointing=checkpointing)
    rows = list(gpu.measure(case, [2, 1], 1, Ranks()))
    assert [row.members for row in rows] == [1, 2]
    assert all(is_measured(row) and row.predicted > 0 and row.peak is None for row in rows)
    cells = [[cell.strip() for cell in gpu.line(row, rows).strip("|").split("|")] for row in rows]
    assert all(len(row) == len(gpu.COLUMNS) for row in cells)
    one, two = (dict(zip(gpu.COLUMNS, row, strict=True)) for row in cells)
    assert one["of single runs"] == "100.0%"
    assert two["of single runs"] == f"{rows[1].update / (2 * rows[0].update):.1%}"
    assert two["tokens/s"] == f"{2 * 2 * 12 / rows[1].update:,.0f}"


def test_the_command_writes_whole_and_sharded_rows_and_keeps_earlier_ones(tmp_path):
    output = tmp_path / "table.md"
    earlier = gpu.Row(gpu.Case("7b", 0, 8, 128, False), 1, 1, "earlier", 18.0, 1.0, 1.05, 1.05, 17.0, 18.5)
    gpu.write(output, [earlier, gpu.Row(CASE, 1, 1, "replaced")])
    done = command(
        *"--device cpu --sizes tiny --members 1 --batch 2 --tokens 12 --rounds 1 --output".split(), str(output)
    )
    assert done.returncode == 0, done.stderr
    rows = gpu.read(output)
    assert [(row.case.size, row.case.stage) for row in rows] == [("tiny", 0), ("tiny", 3), ("7b", 0)]
    assert all(is_measured(row) for row in rows)
    assert rows[2] == earlier
    text = output.read_text()
    assert "replaced" not in text
    assert all(gpu.line(row, rows) in text for row in rows)
    assert f"| {rows[0].floor:.4f} |" in gpu.line(rows[1], rows), (
        "weights in pieces are shown beside the floor of whole ones"
    )
    assert len(json.loads(output.with_suffix(".json").read_text())) == 3


def test_without_a_gpu_it_says_so_and_leaves_the_table_alone():
    before = gpu.OUTPUT.read_bytes()
    done = command()
    assert done.returncode == 0
    assert done.stdout.startswith("no GPU is here")
    assert len(done.stdout.splitlines()) == 1
    assert gpu.OUTPUT.read_bytes() == before


def test_what_does_not_fit_is_listed(monkeypatch):
    def limited(state, *rest):
        if len(state.population) > 1:
            raise torch.OutOfMemoryError("too much")
        return update(state, *rest)

    monkeypatch.setattr(gpu, "update", limited)
    rows = list(gpu.measure(CASE, [1, 2, 4], 1, Ranks()))
    assert [is_measured(row) for row in rows] == [True, False, False]
    assert ["does not fit" in gpu.line(row, rows) for row in rows] == [False, True, True]


def test_the_floor_is_the_whole_work_of_the_plain_model():
    tokens, layers = [], []
    with gpu.built(CASE, CPU) as frozen:
        micro_batches = MicroBatches.of(gpu.settings(CASE, 1), Ranks())
        run = gpu.floor(frozen, gpu.make_examples(2, 12, 512), micro_batches)
        frozen.layers[0].module.register_forward_hook(lambda _, args, __: tokens.append(args[0].shape[:2]))
        for layer in frozen.layers:
            layer.module.register_full_backward_hook(lambda _, into, __: layers.append(into[0].abs().sum() > 0))
        run()
    assert tokens == [(2, 12), (2, 12)]
    assert layers == [True, True], "gradients reach the input of every layer"


def test_floor_and_update_use_the_same_attention(monkeypatch):
    calls, plain = [], torch.nn.functional.scaled_dot_product_attention

    def seen(*tensors, **options):
        # Meta tensors are the prediction of memory; passes of a few tokens check the loaded model.
        if not tensors[0].is_meta and tensors[0].shape[-2] > 8:
            calls.append((options.get("attn_mask") is None, options.get("is_causal")))
        return plain(*tensors, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", seen)
    list(gpu.measure(CASE, [1, 2], 1, Ranks()))
    assert set(calls) == {(True, True)}, "the causal kernel without a mask"


def test_the_floor_is_checkpointed_where_updates_are():
    saved = {}
    for checkpointing in (False, True):
        case = CASE._replace(checkpointing=checkpointing)
        with gpu.built(case, CPU) as frozen:
            run = gpu.floor(frozen, gpu.make_examples(2, 12, 512), MicroBatches.of(gpu.settings(case, 1), Ranks()))
            kept = []
            with torch.autograd.graph.saved_tensors_hooks(
                lambda tensor, k=kept: k.append(tensor) or tensor, lambda t: t
            ):
                run()
            weights = {parameter.data_ptr() for parameter in frozen.model.parameters()}
            saved[checkpointing] = sum(t.numel() for t in kept if t.data_ptr() not in weights)
            assert not any(module.training for module in frozen.model.modules())
    assert saved[True] < 0.6 * saved[False]


class _CpuNoise(Noise):
    """The noise of the CPU on another device, whose own generator draws other numbers."""

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device

    def uniform(self, *what):
        return super().uniform(*what).to(self.device)


def trained(device: torch.device, dtype: torch.dtype):
    """The state of two members after two updates, and their gates before; the weights are those of bfloat16 everywhere."""
    frozen = gpu.build("tiny", 0, device, dtype)
    frozen.model.load_state_dict(gpu.build("tiny", 0, CPU).model.state_dict())
    values = {
        "population.seeds": 2,
        "train.steps": 2,
        "train.lr_warmup": 0.0,
        "train.batch_size": 4,
        "target.total": 200,
    }
    config = load(None, values)
    state, micro_batches = gpu.new_state(frozen, config), MicroBatches.of(config, Ranks(device=device))
    state.population._noise = _CpuNoise(device)
    before = torch.cat([gate.detach().cpu().reshape(-1) for gate in state.parameters])
    examples = gpu.make_examples(4, 16, 512)
    with Streams(frozen, INTERCHANGE) as streams:
        references = ReferenceLogits(streams, examples, micro_batches)
        for _ in range(2):
            update(state, streams, references, examples, micro_batches)
    return state, before


PRECISIONS = [
    pytest.param("cpu", torch.bfloat16, 0.9),
    pytest.param("cuda", torch.float32, 0.999, marks=needs_gpu),
    pytest.param("cuda", torch.bfloat16, 0.9, marks=needs_gpu),
]


@pytest.mark.parametrize(("device", "dtype", "alike"), PRECISIONS)
def test_gates_stay_float32_and_move_as_on_the_cpu_in_float32(device, dtype, alike):
    """Adam moves a gate by the sign of a gradient however small, so not every gate can agree: `alike` is a correlation."""
    expected, before = trained(CPU, torch.float32)
    found, same = trained(torch.device(device), dtype)
    torch.testing.assert_close(before, same, atol=0, rtol=0)
    states = [state for member_state in found.member_states for state in member_state.optimizer.state.values()]
    moments = [value for state in states for name, value in state.items() if name != "step"]
    for tensor in (*found.parameters, *moments):
        assert (tensor.dtype, tensor.device.type) == (torch.float32, device)
    moves = [torch.cat([g.detach().cpu().reshape(-1) for g in s.parameters]) - before for s in (expected, found)]
    assert moves[0].abs().max() > 0.01
    assert torch.corrcoef(torch.stack(moves))[0, 1] > alike


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
def test_all_gates_open_is_the_plain_model_bit_for_bit_in_bfloat16(device):
    frozen = gpu.build("tiny", 0, torch.device(device))
    micro_batches = MicroBatches.of(gpu.settings(CASE, 1), Ranks(device=torch.device(device)))
    batch = next(micro_batches.iterate(gpu.make_examples(2, 12, 512), full=False)).batch
    widths = {"attention": 64, "mlp": 128}

    def everything(_):
        return {site: torch.ones(1, 2, width, device=device) for site, width in widths.items()}

    with torch.no_grad():
        plain = frozen.model(input_ids=batch.clean, use_cache=False, logits_to_keep=1).logits[:, 0]
        with Streams(frozen, INTERCHANGE) as streams:
            masked = streams.masked(batch, everything, 1)[0]
    assert masked.dtype == torch.bfloat16
    assert torch.equal(plain, masked)
