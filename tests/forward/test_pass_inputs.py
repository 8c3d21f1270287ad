"""What goes into a pass."""

import pytest
from torch import nn
from transformers import DynamicCache

from bigcircuit.forward.pass_inputs import named_cache


class Before(nn.Module):
    def forward(self, input_ids, past_key_values=None):
        """As before transformers 5.24."""


class After(nn.Module):
    def forward(self, input_ids, cache=None):
        """As from transformers 5.24 on."""


@pytest.mark.parametrize(("kind", "name"), [(Before, "past_key_values"), (After, "cache")])
def test_a_cache_has_the_name_of_the_model(kind, name):
    cache = DynamicCache()
    assert named_cache(kind(), cache) == {name: cache}
    assert named_cache(kind(), None) == {}
