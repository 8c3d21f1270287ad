"""Scores of circuits on examples."""

import pytest
import torch

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.config.load import load, members
from bigcircuit.data.dataset import load_task
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.forward.reference_logits import ReferenceLogits
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import discretise
from bigcircuit.gates.population import Population
from bigcircuit.metrics.score import score


@pytest.mark.parametrize("task", ["ioi", "induction", "greater_than"])
def test_padding_and_batch_size_change_no_score(embedded, task):
    frozen, tokenizer = embedded
    config = load(None, {"task.name": task, "task.size": 60, "gates.init_spread": 2.0})
    examples = load_task(config.task, tokenizer, frozen.model.config).splits["test"]
    population = Population.new(members(config), frozen.shapes)
    masks = discretise(dict(population.members[0].log_alpha), frozen.shapes, {"total": 900})
    with Streams(frozen, INTERCHANGE) as streams:
        first = score(streams, examples, [masks], MicroBatches(30))
        for batch_size, padding in ((1, "right"), (7, "left"), (30, "left")):
            other = score(streams, examples, [masks], MicroBatches(batch_size, padding=padding))
            for name in first:
                torch.testing.assert_close(first[name], other[name], atol=1e-5, rtol=1e-5, msg=name)
    assert first["kl"].mean() > 0.01


def test_many_circuits_score_the_same_in_any_number_of_passes(embedded):
    frozen, tokenizer = embedded
    examples = load_task(load(None, {"task.size": 30}).task, tokenizer, frozen.model.config).splits["test"]
    generator = torch.Generator().manual_seed(0)
    sizes = {"attention_neuron": 128, "mlp_neuron": 320}
    circuits = [{n: torch.rand(4, w, generator=generator) > 0.3 for n, w in sizes.items()} for _ in range(5)]
    with Streams(frozen, INTERCHANGE) as streams:
        together = score(streams, examples, circuits, MicroBatches(8))
        apart = score(streams, examples, circuits, MicroBatches(8), at_once=2)
        beside = score(streams, examples, circuits, MicroBatches(8), at_once=2, full=True)
        full = score(streams, examples, None, MicroBatches(8))
        cached = ReferenceLogits(streams, examples, MicroBatches(8), full=True)
        again = score(streams, examples, circuits, MicroBatches(8), at_once=2, references=cached)
    for name in together:
        torch.testing.assert_close(apart[name], together[name], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(again[name], apart[name], atol=1e-6, rtol=1e-6)
        assert torch.equal(beside[name], torch.cat([apart[name], full[name]])), name
    assert (together["cross_entropy"] >= 0).all()
