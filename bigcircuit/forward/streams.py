"""The two-stream pass: a frozen model with the effective masks of P members interpolated at its sites.

Each decoder layer runs twice before the next one starts: on the corrupted hidden state, unmasked and without a graph, to leave its
site inputs behind, then on the masked hidden states of all members. The layer's own `forward` does both, so that under ZeRO-3 one
gather of its weights serves both streams. Ablations that need no corrupted run have one stream: closed nodes output constants.

Shapes: P members, R rows of a batch, T tokens, S scored positions, n width of a site, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.data.collate import Batch
from bigcircuit.forward import experts
from bigcircuit.forward.corrupted import Corrupted, PrefixCache, RecordedBatch, RecordingCache
from bigcircuit.forward.expert_pass import run_experts
from bigcircuit.forward.interpolate import Interpolate
from bigcircuit.forward.kept_passes import KeptPasses
from bigcircuit.forward.last_columns import FEWEST, count_columns, run_last_columns
from bigcircuit.forward.pass_inputs import hidden_of, named_cache, of_queries, repeat_rows, replace_forward, tokens_of
from bigcircuit.forward.pass_state import ExpertWatcher, MaskSource, Pass, Watcher
from bigcircuit.forward.rows import (
    ArgumentShapes,
    Division,
    Rows,
    TokenRows,
    few_tokens,
    named_arguments,
    note_shapes,
    places_of_rows,
)
from bigcircuit.forward.shared_layers import Branches
from bigcircuit.model.granularity import EXPERT, MLP, MLP_OUTPUT
from bigcircuit.model.sites import FrozenModel


class Streams:
    """Masked passes over a frozen model. A context manager: hooks are installed on entry and removed on exit.

    With checkpointing the backward pass must happen before the exit, because it runs the layers again.
    """

    def __init__(
        self,
        frozen: FrozenModel,
        ablation: Ablation,
        checkpointing: bool | str = False,
        kept: KeptPasses | None = None,
    ) -> None:
        """ablation: what closed nodes output; checkpointing: keep only layer inputs and recompute each layer backward.

        With checkpointing "cpu" the layer inputs are kept in the memory of the host. kept: where `plain_passes` keeps passes.
        """
        self.frozen = frozen
        self.ablation = ablation.to(frozen.device)
        self.checkpointing = checkpointing
        self.kept = kept
        self._undo: list[Callable[[], None]] = []
        self._pass: Pass | None = None

    def __enter__(self) -> "Streams":
        for index, layer in enumerate(self.frozen.layers):
            for site, module in layer.sites.items():
                if site == EXPERT:
                    self._replace(module, partial(self._experts, index, module.forward))
                else:
                    self._hook(module.register_forward_pre_hook(partial(self._at_input, index, site)))
                if site == MLP:
                    self._hook(module.register_forward_hook(partial(self._at_output, index)))
            self._replace(layer.module, partial(self._layer_forward, index, layer.module.forward))
        self._hook(self.frozen.head.register_forward_pre_hook(self._at_head))
        return self

    def __exit__(self, *_: object) -> None:
        while self._undo:
            self._undo.pop()()

    def _replace(self, module: nn.Module, forward: Callable[..., Any]) -> None:
        self._undo.append(replace_forward(module, forward))

    def _hook(self, handle: Any) -> None:
        self._undo.append(handle.remove)

    @property
    def corrupted_stream(self) -> bool:
        """Whether masked passes also run the corrupted prompts."""
        return self.ablation.kind.needs_corrupted

    @property
    def over_suffix(self) -> bool:
        """Whether masked passes can run the tokens behind the shared prefix alone, against a recorded corrupted run."""
        return self.corrupted_stream and self.frozen.architecture.suffix

    @property
    def can_share(self) -> bool:
        """Whether circuits with the same first masks can share these layers: what closed nodes output is the same for all."""
        by_member = any(len(values) > 1 for found in self.ablation.tensors().values() for values in found.values())
        return self.frozen.architecture.suffix and not by_member

    @contextmanager
    def under(self, ablation: Ablation | None) -> Iterator[None]:
        """Use another ablation for masked passes inside the context; None changes nothing. Its constants may carry a graph."""
        before = self.ablation
        self.ablation = before if ablation is None else ablation.to(self.frozen.device)
        try:
            yield
        finally:
            self.ablation = before

    def reference(self, batch: Batch) -> Tensor:
        """Compute logits of the full model on the clean prompts at the scored positions, [S, V], without a graph.

        Of windows of general text: the inputs of the vocabulary projection in their place, [S, D], see `head.logits_of`."""
        with torch.no_grad():
            return self._forward(self._plain(batch), batch.clean)[0]

    def watch(self, batch: Batch, tokens: Tensor, watcher: Watcher, experts: ExpertWatcher | None = None) -> None:
        """Run the full model without a graph on prompts laid out as in `batch`, [R, T], and pass its activations to callbacks.

        The first one gets the inputs of the projections of every layer and the output of the MLP, `experts` those of a mixture.
        """
        with torch.no_grad():
            self._forward(self._plain(batch, watcher, experts), tokens)

    def _plain(self, batch: Batch, watcher: Watcher | None = None, experts: ExpertWatcher | None = None) -> Pass:
        return Pass(
            batch=batch,
            masks=None,
            members=1,
            rows=Rows(len(batch.clean), 0),
            ablation=self.ablation,
            watch=watcher,
            watch_experts=experts,
        )

    def record(self, batch: Batch, sites: Collection[str]) -> RecordedBatch:
        """Run the full model on the corrupted prompts without a graph, and keep what passes over the suffix need.

        sites: those that masks may close.
        """
        found: dict[tuple[int, str], Tensor] = {}

        def keep(index: int, site: str, value: Tensor) -> None:
            if site in sites:
                found[index, site] = value[:, batch.shared :].clone()

        cache = RecordingCache(batch.shared)
        with torch.no_grad():
            self._forward(self._plain(batch, keep), batch.corrupted, cache)
        return RecordedBatch(batch.shared, found, cache.found)

    def masked(
        self,
        batch: Batch,
        masks: MaskSource,
        members: int,
        corrupted: Corrupted | None = None,
        branches: Branches | None = None,
    ) -> Tensor:
        """Compute logits of P = `members` circuits on the clean prompts at the scored positions, [P, S, V]; as `reference`.

        corrupted: activations of the corrupted run of this batch. With them the pass runs the tokens behind the shared prefix
        alone; only for ablations that need the corrupted stream. branches: members that share layers (`can_share`); no graph.
        """
        tokens, columns = batch.clean, None
        if corrupted is not None:
            tokens = tokens[:, corrupted.cut :]
            columns = count_columns(tokens.shape[1], batch.first_scored - corrupted.cut, len(tokens))
        if branches is not None:
            self.places()  # found by a pass of all ranks together, whatever their micro-batches hold
            branches = branches if tokens.numel() >= FEWEST else None
        tokens = tokens.repeat(members, 1)
        rows, division = Rows(len(tokens), 0), None
        if self.corrupted_stream and corrupted is None:
            rows = Rows(len(tokens), len(batch.corrupted))
            tokens, division = torch.cat([tokens, batch.corrupted]), Division(rows, self.places())
        state = Pass(
            batch=batch,
            masks=masks,
            members=members,
            rows=rows,
            ablation=self.ablation,
            store=corrupted,
            columns=columns,
            branches=branches,
            division=division,
        )
        return self._forward(state, tokens, None if corrupted is None else PrefixCache(corrupted))

    def places(self) -> dict[tuple, int | None]:
        """Find where arguments have their rows whose names do not tell: once for a model, by passes with 2 and 3 rows."""
        model = self.frozen.model
        if model not in _PLACES and self.frozen.device.type != "meta":
            two = self._shapes(2)
            _PLACES[model] = places_of_rows(two, self._shapes(3)) if two else {}
        return _PLACES.get(model, {})

    def _shapes(self, rows: int) -> ArgumentShapes:
        """Run a few tokens in so many rows, and note the shapes of arguments whose names do not tell where they have rows."""
        few, shapes = few_tokens(rows, self.frozen.device), ArgumentShapes()
        state = Pass(batch=few, masks=None, members=1, rows=Rows(rows, 0), ablation=self.ablation, shapes=shapes)
        with torch.no_grad():
            self._forward(state, few.clean)
        return shapes

    def masking(
        self,
        batch: TokenRows,
        masks: MaskSource,
        corrupted: int = 0,
        other_cache: Callable[[Cache], Cache] | None = None,
    ) -> AbstractContextManager[None]:
        """Mask passes that are not made here, such as those of `generate`, inside a context; all logits are computed.

        batch: rows, positions and examples of the pass. corrupted: number of corrupted rows, which come last in what the model is
        called with. other_cache: function of the KV cache of the pass that gives the one of its corrupted rows.
        """
        rows = Rows(len(batch.clean), corrupted)
        division = Division(rows, _PLACES.get(self.frozen.model, {}), other_cache) if corrupted else None
        state = Pass(batch=batch, masks=masks, members=1, rows=rows, ablation=self.ablation, division=division)
        return self._during(state)

    def _forward(self, state: Pass, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Run the model on tokens of all rows, the last columns of the batch or all. cache: of ours, which keeps no state."""
        assert self._undo, "enter the context manager first"
        assert not isinstance(state.batch, TokenRows)
        copies = len(tokens) // len(state.batch.clean)
        positions = state.batch.position_ids
        with self._during(state):
            # use_cache=False is vital: with a cache the second stream attends to the keys of the first one, silently.
            output = self.frozen.model(
                input_ids=tokens,
                attention_mask=repeat_rows(of_queries(state.batch.attention_mask, tokens.shape[1]), copies),
                position_ids=None if positions is None else repeat_rows(positions[:, -tokens.shape[1] :], copies),
                use_cache=False,
                **named_cache(self.frozen.model, cache),
            )
        found = output.logits if state.head_inputs is None else state.head_inputs
        return found[:, : len(state.batch.score_row)] if isinstance(state.batch, Batch) else found

    @contextmanager
    def _during(self, state: Pass) -> Iterator[None]:
        """Make the hooks act on this pass inside the context; outside any context they do nothing."""
        before, self._pass = self._pass, state
        try:
            yield
        finally:
            self._pass = before

    def _layer_forward(self, index: int, plain: Callable[..., Any], hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        state = self._pass
        if state is not None:
            state.layer = index
            if state.shapes is not None:
                note_shapes(state.shapes, index, {"hidden_states": hidden, **self._named(index, args, kwargs)})
        if state is None or state.masks is None:
            return plain(hidden, *args, **kwargs)
        if index == 0 and state.division is not None:
            key = (0, "hidden_states")
            state.corrupted = state.division.take(hidden, "corrupted", key)
            hidden = state.division.take(hidden, "masked", key)
        if state.branches is not None:
            hidden = self._branch(state, state.branches, index, hidden)
        run = partial(self._both, state, index, plain, args, kwargs)
        if self.checkpointing and torch.is_grad_enabled():
            with self._keeping(hidden):
                output, state.corrupted = checkpoint(
                    run, hidden, state.corrupted, use_reentrant=False, preserve_rng_state=False
                )
        else:
            output, state.corrupted = run(hidden, state.corrupted)
        if (
            state.corrupted is not None
            and self.frozen.architecture.needs_all_rows
            and index == len(self.frozen.layers) - 1
        ):
            whole = torch.cat([hidden_of(output), state.corrupted])
            return (whole, *output[1:]) if isinstance(output, (tuple, list)) else whole
        return output

    def _branch(self, state: Pass, branches: Branches, index: int, hidden: Tensor) -> Tensor:
        """Enter a layer that members share: its hidden state, and from now on as many members as there are branches."""
        assert not torch.is_grad_enabled() and state.corrupted is None
        state.members, rows = len(branches.members[index]), len(state.batch.clean)
        now = state.members * rows
        state.division = Division(Rows(now, state.rows.masked - now), self.places())
        return branches.enter(index, hidden, rows)

    def _keeping(self, hidden: Tensor) -> AbstractContextManager[Any]:
        """Choose where the inputs of a checkpointed layer are kept until the backward pass."""
        if self.checkpointing == "cpu" and hidden.is_cuda:
            return torch.autograd.graph.save_on_cpu(pin_memory=True)
        return nullcontext()

    def _both(
        self,
        state: Pass,
        index: int,
        plain: Callable[..., Any],
        args: tuple,
        kwargs: dict,
        masked: Tensor,
        corrupted: Any,
    ) -> tuple[Any, Tensor | None]:
        """One layer: the corrupted stream first (the other order keeps ZeRO-3 weights gathered), then the masked one."""
        with self._during(state):  # again, because a recomputation comes when the forward pass is long over
            state.layer = index
            state.site_masks = state.masks_of(index)
            if corrupted is not None:
                with torch.no_grad(), state.corrupted_run():
                    other = plain(corrupted, **self._side(state, index, "corrupted", args, kwargs))
                corrupted = hidden_of(other)
            named, is_last = self._side(state, index, "masked", args, kwargs), index == len(self.frozen.layers) - 1
            if is_last and state.columns is not None:
                output = run_last_columns(plain, masked, named, state.columns)
            else:
                output = plain(masked, **named)
            if corrupted is not None and state.division is not None:
                state.division.note_returned(output, other)
        state.recorded, state.site_masks = {}, {}
        return output, corrupted

    def _named(self, index: int, args: tuple, kwargs: dict) -> dict[str, Any]:
        return named_arguments(self.frozen.layers[index].module, args, kwargs)

    def _side(self, state: Pass, index: int, stream: str, args: tuple, kwargs: dict) -> dict[str, Any]:
        """Arguments of a layer behind the hidden state for one stream, by name."""
        named, division = self._named(index, args, kwargs), state.division
        return named if division is None else {k: division.take(v, stream, (index, k)) for k, v in named.items()}

    def _experts(self, index: int, plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """Experts of a layer under their gates."""
        state, layer = self._pass, self.frozen.layers[index]
        module = layer.sites[EXPERT]
        if hasattr(module, "is_concatenated") and args[0].is_meta:
            plain = experts.without_data(module)
        if state is None or state.layer != index:
            return plain(*args, **kwargs)
        return run_experts(state, module, layer.shape, plain, (*args, *kwargs.values()))

    def _at_input(self, index: int, site: str, _module: nn.Module, args: tuple) -> tuple | None:
        value = self._at_site(index, site, args[0])
        return None if value is None else (value, *args[1:])

    def _at_output(self, index: int, _module: nn.Module, _args: tuple, output: Tensor) -> Tensor | None:
        return self._at_site(index, MLP_OUTPUT, output)

    def _at_site(self, index: int, site: str, value: Tensor) -> Tensor | None:
        """Compute the masked value of a site; None where `value` stays as it is."""
        state = self._pass
        if state is None or state.layer != index:  # layers may share a module
            return None
        # Some architectures flatten rows and tokens before the MLP, so the shape comes from the batch.
        rows, width = len(state.batch.clean), value.shape[-1]
        if state.watch is not None:
            state.watch(index, site, value.reshape(rows, -1, width))
        if site not in state.site_masks:
            return None
        if state.recording:
            # Falcon adds to the output of its MLP in place.
            state.recorded[site] = value.clone() if site == MLP_OUTPUT else value
            return None
        masked = value.reshape(state.members, rows, -1, width)
        ablated: Tensor | None
        if state.store is not None:
            ablated = state.store.site(index, site)[:, -masked.shape[2] :].unsqueeze(0)
        elif state.rows.corrupted:
            ablated = state.recorded[site].reshape(1, rows, -1, width)
        else:
            ablated = state.ablation.at(site, index, width, tokens_of(state.batch))
        return Interpolate.apply(masked, ablated, state.site_masks[site].unsqueeze(2)).reshape(value.shape)

    def _at_head(self, _module: nn.Module, args: tuple) -> tuple | None:
        """Keep only the scored positions before the vocabulary projection: [P * R, T, D] -> [P, S, D]."""
        state = self._pass
        if state is None or not isinstance(state.batch, Batch):
            return None
        hidden = args[0][: state.rows.masked].reshape(state.members, len(state.batch.clean), -1, args[0].shape[-1])
        positions = state.batch.score_position - (0 if state.store is None else state.store.cut)
        found = hidden[:, state.batch.score_row, positions]
        found = found if state.branches is None else found[state.branches.of_member]
        if state.batch.logit_chunk is None:
            fewest = -(-FEWEST // len(found))  # of a member, for enough rows of all together
            return (pad(found, (0, 0, 0, max(0, fewest - found.shape[1]))), *args[1:])
        state.head_inputs = found
        return (found[:, :1], *args[1:])


_PLACES: WeakKeyDictionary[Any, dict[tuple, int | None]] = WeakKeyDictionary()
"""Model -> dimension of the rows in arguments of layers whose names do not tell."""
