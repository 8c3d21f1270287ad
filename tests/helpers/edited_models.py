"""Models edited with plain hooks, as an independent way to put other activations in the place of a site's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor

from bigcircuit.model.sites import FrozenModel

Change = Callable[[int, str, Tensor], Tensor]


@contextmanager
def edited(frozen: FrozenModel, change: Change) -> Iterator[None]:
    """Put `change(layer, site, activation)` in the place of every site's activation in the plain model."""
    handles = []
    for index, layer in enumerate(frozen.layers):
        for site, module in (("attention", layer.attention), ("mlp", layer.mlp)):

            def before(_module, args, index=index, site=site):
                return (change(index, site, args[0]), *args[1:])

            handles.append(module.register_forward_pre_hook(before))

        def after(_module, _args, output, index=index):
            return change(index, "mlp_output", output)

        handles.append(layer.mlp.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
