"""Example predictions do not depend on which circuits share a pass."""

import torch

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics import predictions
from tests.helpers.tiny_models import TINY_CONFIGS, tiny_model, uneven_examples


def test_passes_hold_few_circuits_each_with_its_own_constants(monkeypatch):
    frozen = tiny_model("llama", TINY_CONFIGS["llama"][0])
    shape, layers = frozen.shapes[0], len(frozen.shapes)
    widths = {"attention_neuron": shape.heads * shape.head_dim, "mlp_neuron": shape.intermediate}
    generator = torch.Generator().manual_seed(1)
    masks = [
        {name: torch.rand(layers, width, generator=generator) > 0.5 for name, width in widths.items()} for _ in range(6)
    ]
    constants = {
        site: torch.randn(3, layers, 1, width, generator=generator)
        for site, width in zip(("attention", "mlp"), widths.values(), strict=True)
    }
    ablation, sizes = Ablation("mean", constants), []
    masked = Streams.masked

    def counted(self, batch, source, members, *rest):
        sizes.append(members)
        return masked(self, batch, source, members, *rest)

    monkeypatch.setattr(Streams, "masked", counted)
    with Streams(frozen, ablation.of([0])) as streams, torch.no_grad():
        whole = predictions._likeliest(streams, masks, ablation, uneven_examples())
        monkeypatch.setattr(predictions, "_AT_ONCE", 4)
        parts = predictions._likeliest(streams, masks, ablation, uneven_examples())
    assert sizes == [6, 4, 2]
    for one, other in zip(whole, parts, strict=True):
        for first, second in zip(one, other, strict=True):
            torch.testing.assert_close(torch.tensor(first), torch.tensor(second))
