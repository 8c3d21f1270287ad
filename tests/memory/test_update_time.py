"""The prediction of an update's time: FLOPs, bytes, gathers and passes against closed forms, and seconds of a real run."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from bigcircuit.check import machine
from bigcircuit.config.load import load
from bigcircuit.data.pair import Example
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.forward.last_columns import FEWEST
from bigcircuit.memory.estimate import Estimate, Workload
from bigcircuit.memory.fit import needs
from bigcircuit.memory.pass_seconds import PassSeconds, typical_micro_batch, update_flops
from bigcircuit.memory.shortened import materialised, shortened, weight_bytes
from bigcircuit.memory.update_time import Passes, Transfers, assemble, predict_time
from bigcircuit.model.sites import find_sites
from bigcircuit.runtime.host_memory import GIB, FreeMemory
from bigcircuit.train.resolve import ResolvedRun, resolve
from tests.helpers.resolved_runs import without_pairs
from tests.helpers.short_runs import QUICK
from tests.helpers.tiny_models import TINY_CASES

WORK = Workload(tokens=24, answer=2, rows=1, trained=50, validated=50)
ONE = PassSeconds(update=2.0, rest=0.25, scoring=1.0, reference=0.5, flops=10**9, layers=2)
TEN = Passes(references=4, update=2, updates=10, validation=3, validations=5, final=6)
NOTHING = Estimate({})
NO_TRANSFERS = Transfers(weights=100, gathered=0, gathers=0, cache=100)


def llama_flops(run: ResolvedRun, work: Workload, members: int, pairs: int) -> int:
    """2 FLOPs a weight and row, for P masked streams forward and backward and the corrupted one forward, with attention."""
    frozen, config = run.model.skeleton, run.model.hf_config
    inside = sum(
        p.numel()
        for layer in frozen.layers
        for m in layer.module.modules()
        if type(m) is nn.Linear
        for p in m.parameters()
    )
    heads = config.num_attention_heads * frozen.shapes[0].head_dim
    attention = len(frozen.layers) * 2 * 2 * pairs * work.tokens**2 * heads
    layers, head = 2 * inside * pairs * work.tokens + attention, 2 * frozen.head.weight.numel() * pairs * work.answer
    # Backward: weights are frozen, so each product has one more; those of attention have two.
    return layers * (members + 1) + members * (layers + attention) + 2 * members * head


@pytest.mark.parametrize(("members", "store"), [(1, False), (3, False), (3, True)])
def test_flops_of_an_update_are_those_of_the_closed_form(members, store):
    settings = {"population.seeds": members, "train.micro_batch_size": 4, "target.total": 100, "train.store": store}
    run = without_pairs(settings)
    expected = llama_flops(run, WORK, members, pairs=4) - (llama_flops(run, WORK, 0, pairs=4) if store else 0)
    # The first layer's query, key and value products need no backward pass: no gate comes before them.
    first = run.model.skeleton.layers[0].module.self_attn
    saved = sum(2 * p.weight.numel() for p in (first.q_proj, first.k_proj, first.v_proj)) * 4 * WORK.tokens
    assert update_flops(run, WORK) == pytest.approx(expected - members * saved, rel=0.03)


def test_flops_of_a_pass_over_the_suffix_are_those_of_its_tokens():
    run = without_pairs({"train.micro_batch_size": 4, "target.total": 100})
    whole, half = update_flops(run, WORK), update_flops(run, WORK._replace(suffix=WORK.tokens // 2))
    # The rows of the vocabulary, sixteen at least, are as many in both; there and back.
    head = 2 * 2 * run.model.skeleton.head.weight.numel() * max(4 * WORK.answer, FEWEST)
    assert half - head == pytest.approx((whole - head) / 2, rel=0.03)


def test_flops_of_recomputation_are_counted():
    plain = update_flops(without_pairs({"target.total": 100}), WORK)
    again = update_flops(without_pairs({"target.total": 100, "train.checkpointing": True}), WORK)
    assert 1.3 * plain < again < 1.8 * plain, "the layers forward once more, with P = 1 two of three passes"


def test_a_pass_reads_the_weights_that_the_page_cache_does_not_keep():
    assert [Transfers(100, 0, 0, cache).read(backward=True) for cache in (120, 100, 99, 30, 0)] == [0, 0, 2, 140, 200]
    assert [Transfers(100, 0, 0, cache).read(backward=False) for cache in (100, 99, 0)] == [0, 100, 100]
    slow = Transfers(100, 0, 0, 30, disk=70.0)
    read = assemble(Passes(references=4, update=2, updates=10, validation=3, validations=1, final=5), ONE, slow)
    assert read.read == 140 and read.update == 2 * (2.0 + 2.0) + 0.25


def test_a_run_is_the_sum_of_its_passes():
    found = assemble(TEN, ONE, NO_TRANSFERS, start=7.0)
    assert found.update == 2 * 2.0 + 0.25
    assert found.parts == {
        "weights read and hashed": 7.0, "references": 4 * 0.5, "updates": 42.5, "validations": 5 * 3 * 1.0, "final scores": 6 * 1.5,
    }  # fmt: skip
    assert found.total == sum(found.parts.values())


def test_ranks_divide_the_passes_share_the_cores_and_gather_the_weights():
    settings = {"train.batch_size": 16, "train.micro_batch_size": 4, "train.steps": 250, "train.validate_every": 100}
    run = resolve(load(None, {**QUICK, **settings}), Ranks())
    one, two = Passes.of(run, 1), Passes.of(run, 2)
    assert (one.update, two.update) == (4, 2) and one.updates == two.updates == 250 and one.validations == 3
    test = len(run.data.splits["test"])
    assert (one.final, two.final) == (-(-test // 4), -(-test // 8))
    assert assemble(one, ONE, NO_TRANSFERS, crowded=2.0).update == 2 * assemble(one, ONE, NO_TRANSFERS).update
    sharded = run.changed({}, "same")
    sharded = sharded.__class__(
        **{**vars(sharded), "model": without_pairs({"deepspeed": "configs/deepspeed/zero3.json"}).model}
    )
    work, host = Workload.of(run.data.splits, 2), FreeMemory(64 * GIB, False)
    found = Transfers.of(sharded, work, host, NOTHING)
    in_files = replace(sharded, model=replace(sharded.model, stored=torch.float32))
    assert Transfers.of(in_files, work, host, NOTHING).gathers == len(run.model.shapes), "vocabulary stays in the files"
    assert found.gathers == len(run.model.shapes) + 2, (
        "a gather a layer, one for the embedding and one for the last norm"
    )
    assert found.seconds(backward=True) == 2 * found.seconds(backward=False) > 0
    assert not Transfers.of(run, work, host, NOTHING).gathers
    assert not Transfers.of(sharded, work, FreeMemory(64 * GIB, True), NOTHING).gathers


def test_the_page_cache_has_what_the_run_leaves_free():
    run = without_pairs({"target.total": 100})
    weights = weight_bytes(run.model.skeleton.model)
    parts = Estimate({"activations and gradients": 1000}, mapped=weights)
    assert Transfers.of(run, WORK, FreeMemory(weights + 900, False), parts).read(backward=True) == 0, (
        "allocated weights"
    )
    run = replace(run, model=replace(run.model, stored=torch.float32))
    assert Transfers.of(run, WORK, FreeMemory(weights + 1000, False), parts).read(backward=True) == 0
    assert Transfers.of(run, WORK, FreeMemory(weights + 900, False), parts).read(backward=True) == 200


@pytest.mark.parametrize(("name", "settings"), TINY_CASES)
def test_every_architecture_runs_with_fewer_layers_and_random_weights(name, settings):
    with torch.device("meta"):
        frozen = find_sites(AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings)))
    run = without_pairs(load(None, {"target.total": 40}), meta=frozen)
    few = materialised(shortened(run, 2), torch.device("cpu")).model.skeleton
    assert len(few.layers) == 2 and len(run.model.skeleton.layers) == 3
    logits = few.model(input_ids=torch.arange(6).view(1, 6), use_cache=False).logits
    assert logits.isfinite().all()
    tied = frozen.model.get_input_embeddings().weight is frozen.head.weight
    assert (few.model.get_input_embeddings().weight is few.head.weight) == tied


def test_fewer_layers_share_the_weights():
    run = without_pairs({"target.total": 100})
    one = shortened(run, 1)
    assert one.model.skeleton.head.weight is run.model.skeleton.head.weight
    assert one.members[0].target.total <= one.model.nodes["total"]
    assert len(run.model.skeleton.layers) == 4


def test_the_micro_batch_that_is_measured_has_the_median_length():
    run = resolve(load(None, {**QUICK, "train.batch_size": 3}), Ranks())
    lengths = [9, 4, 6]
    examples = [
        Example(id=i, clean=(5,) * n, corrupted=(6,) * n, answers=((1,),), wrong_answers=((2,),), source="")
        for i, n in enumerate(lengths)
    ]
    run.data.splits["train"] = examples
    assert [len(e.clean) for e in typical_micro_batch(run, 1)] == [6]


def test_a_prediction_is_that_of_the_run_and_needs_room_for_two_layers(monkeypatch):
    run = resolve(load(None, QUICK), Ranks())
    work, memory = Workload.of(run.data.splits, 1), FreeMemory.measure()
    found = predict_time(run, work, memory, needs(run, work, memory))
    assert found.read == 0 and found.measured.layers == 4
    assert 0.001 < found.update < 5 and found.parts["updates"] == run.config.train.steps * found.update
    monkeypatch.setattr(FreeMemory, "measure", classmethod(lambda cls, _: cls(1000, False)))
    with pytest.raises(UserError, match=r"--time measures two layers .* are free; leave it out"):
        predict_time(run, work, memory, {})


def test_the_machine_asked_about_is_named():
    assert machine(8, FreeMemory(80 * GIB, True)) == "8 ranks on GPUs of 80 GiB each"
    assert machine(1, FreeMemory(80 * GIB, True)) == "1 rank on a GPU of 80 GiB"
    assert machine(2, FreeMemory(24 * GIB, False)) == "2 ranks on one CPU host with 24 GiB"
