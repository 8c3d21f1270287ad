"""Checks of a loaded model by a few small passes: do gates do what they say in this architecture?

 - A token's logits do not depend on later tokens.
 - With all gates open the circuit is the plain model; with all closed it is the model on the corrupted prompts, alone and beside
   another circuit.
 - With all gates closed under zero ablation no weight matrix of a layer has a gradient: nothing writes around the gates.
 - One projection of each class has a gradient, and it is that of its own matrix. Kernels of quantised weights may have none.

So an architecture that was guessed is safe, and a listed one is as it was when the list was made.

Shapes: R rows, T tokens, V vocabulary.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from bigcircuit.ablation.ablation import INTERCHANGE, ZERO
from bigcircuit.data.collate import Batch, collate
from bigcircuit.data.pair import Example
from bigcircuit.errors import UserError
from bigcircuit.forward.pass_state import MaskSource
from bigcircuit.forward.streams import Streams
from bigcircuit.model.architectures import FUSED, GUESSED, KEYS, LATENT, QUERIES, VALUES
from bigcircuit.model.granularity import EXPERT, MLP_OUTPUT, SITE_WIDTH, sites_of
from bigcircuit.model.paths import in_features
from bigcircuit.model.sites import FrozenModel
from bigcircuit.model.zero3 import gathered

_TOKENS = 8
_INPUTS = (*QUERIES, *KEYS, *VALUES, *FUSED, *LATENT, "gate_proj", "up_proj", "gate_up_proj")
"""Names of projections that are tried besides those of the sites."""
_COLUMNS = 32
"""Columns of a matrix that its gradient is compared with."""
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
_HALF, _HALF_ROUTED = 0.05, 0.3
"""Largest difference of logits, as a share of their size. In half precision a router may choose another of two equal experts."""


@torch.inference_mode(False)
@torch.enable_grad()
def check_loaded_model(frozen: FrozenModel, *, brief: bool = False) -> None:
    """Run the checks. Every rank calls this function. Raises UserError, with the kind of the fault, for a model that fails one.

    brief: gradients of projections only, where each pass would read the weights from a disk.
    """
    for name, module in _projections(frozen):
        _check_gradient(frozen, name, module)
    if brief and frozen.architecture.kind != GUESSED:
        return
    batch = _batch(frozen)
    with torch.no_grad(), Streams(frozen, INTERCHANGE) as streams:
        clean, corrupted = streams.reference(batch), streams.reference(batch._replace(clean=batch.corrupted))
        if not (clean.isfinite().all() and corrupted.isfinite().all()):
            return  # what is not finite is told with the pair that it is found on
        later = batch.clean.clone()
        later[:, -1] = batch.corrupted[:, 1]
        before = batch.score_position < _TOKENS - 1
        early = streams.reference(batch._replace(clean=later))
        _compare(frozen, early[before], clean[before], "its logits depend on later tokens: it is an encoder")
        opened, closed = _constant(frozen, [1.0]), _constant(frozen, [0.0])
        _compare(frozen, streams.masked(batch, opened, 1)[0], clean, "with all gates open it is another model")
        what = "with all gates closed it is not the model on the corrupted prompts"
        _compare(frozen, streams.masked(batch, closed, 1)[0], corrupted, what)
        two = streams.masked(batch, _constant(frozen, [1.0, 0.0]), 2)
        _compare(frozen, two[0], clean, "a circuit beside another one is not itself")
        _compare(frozen, two[1], corrupted, "a circuit beside another one is not itself")
    if frozen.engine is None and not brief and (leak := _ungated(frozen, batch)):
        raise _refused(frozen, f"{leak} writes into the residual stream around the gates")


def _refused(frozen: FrozenModel, fault: str) -> UserError:
    kind = frozen.model.config.get_text_config(decoder=True).model_type
    return UserError(f"model type {kind!r} cannot be masked: {fault}; docs/models.md lists the types that can")


def _batch(frozen: FrozenModel) -> Batch:
    """Two pairs whose first tokens differ, the second one padded; scored where their tokens are equal."""
    vocabulary = frozen.model.get_input_embeddings().weight
    size = getattr(vocabulary, "ds_shape", vocabulary.shape)[0]
    numbers = torch.Generator().manual_seed(0)
    pairs = []
    for index in range(2):
        clean = torch.randint(min(3, size - 1), size, (_TOKENS - index,), generator=numbers).tolist()
        corrupted = [*torch.randint(min(3, size - 1), size, (2,), generator=numbers).tolist(), *clean[2:]]
        answers = ((clean[1], clean[2]),)
        pairs.append(
            Example(
                id=index,
                clean=tuple(clean[:-1]),
                corrupted=tuple(corrupted[:-1]),
                answers=answers,
                wrong_answers=(),
                source="",
            )
        )
    return collate(pairs, full=False).to(frozen.device)


def _constant(frozen: FrozenModel, values: list[float]) -> MaskSource:
    """Masks of one value for each circuit."""
    sites = [site for site in sites_of(frozen.shapes, ()) if site != MLP_OUTPUT]
    column = torch.tensor(values, device=frozen.device).view(-1, 1, 1)

    def masks(index: int) -> dict[str, Tensor]:
        widths = {site: SITE_WIDTH[site](frozen.shapes[index]) for site in sites}
        return {site: column.expand(-1, 1, width) for site, width in widths.items() if width}

    return masks


def _compare(frozen: FrozenModel, found: Tensor, expected: Tensor, fault: str) -> None:
    routed = any(EXPERT in layer.sites for layer in frozen.layers)
    limit = _TOLERANCE.get(expected.dtype, _HALF_ROUTED if routed else _HALF)
    difference = (found - expected).float().square().mean().sqrt()
    size = expected.float().square().mean().sqrt()
    if not difference <= limit * size:
        raise _refused(frozen, f"{fault} (logits are {float(difference / size):.1%} off)")


def _ungated(frozen: FrozenModel, batch: Batch) -> str | None:
    """Find a weight matrix that moves logits though all gates are closed, in the last layer of each sort; None if there is none."""
    last = {tuple(layer.sites): (index, layer) for index, layer in enumerate(frozen.layers)}
    weights = {
        f"{frozen.path}.{index}.{name}": parameter
        for index, layer in last.values()
        for name, parameter in layer.module.named_parameters()
        if parameter.ndim > 1 and parameter.is_floating_point() and not name.startswith(frozen.architecture.always_open)
    }
    found: list[str] = []

    def note(name: str) -> Callable[[Tensor], None]:
        def look(parameter: Tensor) -> None:  # at once, so that gradients of two matrices are never there together
            if parameter.grad is not None and parameter.grad.any():
                found.append(name)
            parameter.grad = None

        return look

    wanted, handles = list(weights.values()), []
    before = [(weight, weight.requires_grad, weight.grad) for weight in wanted]  # of a user's model object
    try:
        for name, weight in weights.items():
            weight.grad = None
            handles.append(weight.requires_grad_(True).register_post_accumulate_grad_hook(note(name)))
        with Streams(frozen, ZERO) as streams:
            logits = streams.masked(batch, _constant(frozen, [0.0]), 1)
            if logits.requires_grad:
                (logits.float() * torch.linspace(-1, 1, logits.shape[-1], device=logits.device)).sum().backward(
                    inputs=wanted
                )
    finally:
        for handle in handles:
            handle.remove()
        for weight, had_gradient, gradient in before:
            weight.requires_grad_(had_gradient).grad = gradient
    return min(found) if found else None


def _projections(frozen: FrozenModel) -> Iterator[tuple[str, nn.Module]]:
    """Yield the first projection in the layers of each class, with its name."""
    known = set[type]()
    for index, layer in enumerate(frozen.layers):
        own = {id(module) for module in layer.sites.values()}
        for name, module in layer.module.named_modules():
            is_one = id(module) in own or name.rpartition(".")[2] in _INPUTS
            if is_one and in_features(module) and type(module) not in known:
                known.add(type(module))
                yield f"{frozen.path}.{index}.{name}", module


def _check_gradient(frozen: FrozenModel, name: str, module: nn.Module) -> None:
    """Compare the gradient that a projection gives its input with columns of its matrix, read off by unit vectors."""
    width, like = in_features(module), {"dtype": frozen.model.dtype, "device": frozen.device}
    with gathered(frozen, module):
        columns = torch.linspace(0, width - 1, min(_COLUMNS, width)).long().unique().to(frozen.device)
        units = torch.zeros(len(columns), width, **like)
        units[torch.arange(len(columns)), columns] = 1
        with torch.no_grad():
            matrix = (module(units) - module(torch.zeros_like(units))).float()
        numbers = torch.Generator().manual_seed(0)
        inputs = torch.randn(2, width, generator=numbers).to(**like).requires_grad_()
        output = module(inputs)
        weights = torch.randn(output.shape, generator=numbers).to(output)
        if not output.requires_grad:
            raise _refused(frozen, f"{name} ({type(module).__name__}) gives no gradient")
        (gradient,) = torch.autograd.grad((output * weights).sum(), inputs)
    ours, expected = gradient[:, columns].float().flatten(), (weights.float() @ matrix.T).flatten()
    likeness = float(torch.cosine_similarity(ours, expected, dim=0))
    if not likeness > 0.98 and expected.any():
        raise _refused(
            frozen, f"the gradient of {name} ({type(module).__name__}) is not that of its matrix: cosine {likeness:.2f}"
        )
