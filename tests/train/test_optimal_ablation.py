"""Optimal constants of finished circuits: against another optimiser, alone and in company, from other starts."""

import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from bigcircuit.ablation.ablation import ZERO
from bigcircuit.ablation.learned import ConstantsStart
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load, members
from bigcircuit.data.collate import collate
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.forward.activation_means import mean_ablation, moments
from bigcircuit.forward.reference_logits import ReferenceLogits, Targets
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import discretise
from bigcircuit.gates.population import Population
from bigcircuit.metrics.distinct_circuits import mask_source
from bigcircuit.metrics.score import score
from bigcircuit.train.optimal_ablation import optimal_ablation
from tests.helpers.edited_models import edited
from tests.helpers.short_runs import run
from tests.helpers.tiny_models import DENSE_SITES, TINY, tiny_examples, tiny_model

SITES = DENSE_SITES


@pytest.fixture(scope="module")
def frozen():
    return tiny_model("llama", TINY)


def at_means(frozen, chosen):
    found = moments(frozen, chosen, MicroBatches(4), per_position=False, prompts="corrupted")
    return ConstantsStart.at_means(found, frozen.shapes)


def lessons(frozen, chosen, full=False):
    with Streams(frozen, ZERO) as streams:
        return Targets(chosen, ReferenceLogits(streams, chosen, MicroBatches(4), full=full), full)


def learn(frozen, circuits, chosen, micro_batches, start=None, **settings):
    """What `optimal_ablation` finds, by default from the means on."""
    with Streams(frozen, ZERO) as streams:
        train, start = lessons(frozen, chosen), start or at_means(frozen, chosen)
        return optimal_ablation(streams, circuits, train, micro_batches, start, **settings)


def circuits_of_sizes(frozen, *sizes):
    population = Population.new(members(load(None, {"population.seeds": len(sizes)})), frozen.shapes)
    return [
        discretise(dict(member.log_alpha), frozen.shapes, {"total": size})
        for member, size in zip(population.members, sizes, strict=True)
    ]


def kl(frozen, ablation, circuits, chosen):
    with Streams(frozen, ablation) as streams:
        return score(streams, chosen, circuits, MicroBatches(8))["kl"].mean(1)


def test_learned_constants_are_nearer_than_means_and_the_same_alone_and_in_company(frozen):
    chosen, circuits = tiny_examples(6), circuits_of_sizes(frozen, 60, 120, 200)
    together = learn(frozen, circuits, chosen, MicroBatches(4), steps=40)
    assert together.name == "optimal" and len(together.constants["mlp"]) == 3
    means = kl(frozen, mean_ablation(frozen, chosen, MicroBatches(4)), circuits, chosen)
    learned = kl(frozen, together, circuits, chosen)
    assert (learned < 0.8 * means).all(), (learned, means)
    for index, circuit in enumerate(circuits):
        alone = learn(frozen, [circuit], chosen, MicroBatches(3), steps=40)
        for site in SITES:
            torch.testing.assert_close(alone.constants[site][0], together.constants[site][index], atol=2e-3, rtol=0)
    for rows, size in ((slice(0, 2), 2), (slice(2, 3), 2)):
        with Streams(frozen, together) as streams:
            in_chunks = score(streams, chosen, circuits, MicroBatches(8), at_once=size)["kl"].mean(1)
        torch.testing.assert_close(in_chunks[rows], learned[rows], atol=1e-6, rtol=1e-5)


def test_constants_that_learning_made_worse_stay_means(frozen):
    chosen, circuits = tiny_examples(4), circuits_of_sizes(frozen, 230, 239)  # of 240 neurons
    found = learn(frozen, circuits, chosen, MicroBatches(4), steps=2, lr=50.0)
    mean = mean_ablation(frozen, chosen, MicroBatches(4))
    for site in SITES:
        for row in found.constants[site]:
            assert torch.equal(row, mean.constants[site][0])


def test_learned_constants_reach_the_optimum_that_bfgs_finds(frozen):
    """Six closed neurons of the last MLP, and a model edited by hand in float64 that scipy optimises."""
    chosen, neurons = tiny_examples(6), [3, 7, 11, 20, 33, 40]
    masks = {k: v.clone() for k, v in circuits_of_sizes(frozen, 240)[0].items()}
    assert all(mask.all() for name, mask in masks.items())
    masks["mlp_neuron"][-1, neurons] = False
    ours = learn(frozen, [masks], chosen, MicroBatches(6), steps=250, lr=0.1)
    double = tiny_model("llama", TINY)
    double.model.double()
    batch = collate(chosen, full=False)

    def logits(values):
        def change(index, site, value):
            if values is None or site != "mlp" or index != len(frozen.layers) - 1:
                return value
            return value.index_copy(-1, torch.tensor(neurons), values.expand(*value.shape[:-1], -1))

        with edited(double, change):
            whole = double.model(
                input_ids=batch.clean,
                attention_mask=batch.attention_mask,
                position_ids=batch.position_ids,
                use_cache=False,
            ).logits
        return whole[batch.score_row, batch.score_position].log_softmax(-1)

    with torch.no_grad():
        reference = logits(None)

    def loss(x):
        values = torch.tensor(x, requires_grad=True)
        divergence = (reference.exp() * (reference - logits(values))).sum(-1) @ batch.kl_weight.double() / len(chosen)
        divergence.backward()
        return divergence.item(), values.grad.numpy()

    start = mean_ablation(frozen, chosen, MicroBatches(6)).constants["mlp"][0, -1, 0, neurons].double().numpy()
    best = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-9})
    found = ours.constants["mlp"][0, -1, 0, neurons].double().numpy()
    assert best.fun < 0.9 * loss(start)[0], "there is something to gain"
    assert loss(found)[0] == pytest.approx(best.fun, rel=1e-3)
    np.testing.assert_allclose(found, best.x, atol=0.03 * np.abs(best.x - start).max())


def test_learning_goes_on_from_constants_of_the_circuits_own(frozen):
    """Twice 30 steps reach what 30 do not; the constants of open neurons stay as they are to the bit."""
    chosen, circuits = tiny_examples(6), circuits_of_sizes(frozen, 60, 120)
    first = learn(frozen, circuits, chosen, MicroBatches(6), steps=30)
    start = ConstantsStart({site: c[:, :, 0] for site, c in first.constants.items()}, at_means(frozen, chosen).unit)
    none = start.ablation([{}, {}])
    again = learn(frozen, circuits, chosen, MicroBatches(6), start, steps=30)
    assert all(torch.equal(none.constants[site], first.constants[site]) for site in SITES)
    assert (kl(frozen, again, circuits, chosen) < 0.97 * kl(frozen, first, circuits, chosen)).all()
    for index, masks in enumerate(circuits):
        for site, leaf in (("attention", "attention_neuron"), ("mlp", "mlp_neuron")):
            moved = again.constants[site][index, :, 0] != first.constants[site][index, :, 0]
            assert moved[~masks[leaf]].float().mean() > 0.9 and not moved[masks[leaf]].any()


def test_held_out_pairs_decide_whether_new_constants_are_kept(frozen):
    """What is to be predicted on them is here what the first circuit predicts at the start, so it can only get worse."""
    chosen, circuits = tiny_examples(8), circuits_of_sizes(frozen, 200, 100)
    start = at_means(frozen, chosen)
    means = start.ablation([{}, {}])

    def at_start(micro_batch):
        with torch.no_grad(), Streams(frozen, means.of([0])) as streams:
            return streams.masked(micro_batch.batch, mask_source(circuits[:1], streams), 1)[0]

    held_out = Targets(chosen, at_start, full=True)
    kept = learn(frozen, circuits, chosen, MicroBatches(4), start, steps=10, held_out=held_out).of([0])
    own = learn(frozen, circuits, chosen, MicroBatches(4), start, steps=10, held_out=lessons(frozen, chosen, full=True))
    assert all(torch.equal(kept.constants[site], means.constants[site][:1]) for site in SITES)
    assert not any(torch.equal(own.constants["mlp"][i], means.constants["mlp"][i]) for i in (0, 1))


def test_constants_are_fitted_to_the_finished_masks(tmp_path):
    """Nearer to the model than those that were learned with half-open gates; those of open neurons stay what they were."""
    settings = {"ablation__kind": "optimal", "population__seeds": 2, "task__size": 60, "train__steps": 20}
    folders = [run(tmp_path / str(steps), **settings, ablation__finish_steps=steps) for steps in (0, 25)]
    before, after = (json.loads(folder.summary.read_text()) for folder in folders)
    for one, other in zip(before["members"], after["members"], strict=True):
        old, new = (Circuit.load(f.path / row["circuit"]) for f, row in zip(folders, (one, other), strict=True))
        assert other["scores"]["kl"]["mean"] < 0.9 * one["scores"]["kl"]["mean"]
        for site, leaf in (("attention", "attention_neuron"), ("mlp", "mlp_neuron")):
            assert torch.equal(old.masks[leaf], new.masks[leaf])
            moved = old.constants[site] != new.constants[site]
            assert moved[~new.masks[leaf]].any() and not moved[new.masks[leaf]].any()
