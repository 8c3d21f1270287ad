"""Parameters that a circuit keeps, against those of the model."""

import pytest
import torch

from bigcircuit.gates.discretise import discretise
from bigcircuit.model.parameter_count import count_parameters
from tests.helpers.tiny_models import TINY_CASES, tiny_model


@pytest.mark.parametrize(("name", "settings"), TINY_CASES)
def test_parameter_count_of_everything_is_the_model(name, settings):
    frozen = tiny_model(name, settings)
    shapes = frozen.shapes
    full = discretise({"block": torch.ones(len(shapes), 1)}, shapes, {})
    kept = count_parameters(frozen, full)
    assert kept.kept == kept.total == sum(p.numel() for layer in frozen.layers for p in layer.module.parameters())
    nothing = count_parameters(frozen, {name: torch.zeros_like(mask) for name, mask in full.items()})
    assert nothing.kept == 0
    one_head = {name: mask.clone() for name, mask in full.items()}
    one_head["attention_neuron"][0, : shapes[0].head_dim] = False
    one_head["head"][0, 0] = False
    lost = kept.kept - count_parameters(frozen, one_head).kept
    row = 1 + shapes[0].hidden
    queries, outputs = shapes[0].head_dim * shapes[0].hidden, shapes[0].head_dim * shapes[0].hidden
    group_is_gone = shapes[0].kv_heads == shapes[0].heads
    bound = shapes[0].head_dim * row * (3 if group_is_gone else 1) + outputs
    assert queries + outputs <= lost <= bound
