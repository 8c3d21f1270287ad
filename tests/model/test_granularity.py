"""Widths of granularities, as a model's layers have them."""

from bigcircuit.model.granularity import GRANULARITIES, LayerShape
from tests.helpers.tiny_models import TINY, tiny_model


def test_widths_are_read_from_the_model():
    shape = tiny_model("llama", TINY).shapes[0]
    assert shape == LayerShape(heads=4, kv_heads=2, head_dim=8, intermediate=48, hidden=32)
    assert [GRANULARITIES[g].width(shape) for g in ("kv_group", "head", "attention_neuron", "mlp_neuron")] == [
        2,
        4,
        32,
        48,
    ]
