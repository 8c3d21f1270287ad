"""Layers that flow through two slots, or are read ahead: equal to the resident model to the bit, two layers at a time."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from bigcircuit.ablation.ablation import INTERCHANGE, ZERO
from bigcircuit.config.schema import ModelConfig
from bigcircuit.data.collate import collate
from bigcircuit.errors import UserError
from bigcircuit.forward.streams import Streams
from bigcircuit.model.layer_stream import streamed
from bigcircuit.model.load import load_frozen
from bigcircuit.model.sites import find_sites
from tests.helpers.tiny_models import TINY, TINY_CASES, random_masks, tiny_examples, tiny_model

CPU = torch.device("cpu")
MEMBERS, ROWS = 2, 3


def gradients(frozen, ablation, checkpointing, passes=2):
    """Logits of masked passes, reference logits between them, and the gradients by mask."""
    batch = collate(tiny_examples(ROWS), full=False)
    found = []
    with Streams(frozen, ablation, checkpointing) as streams:
        for seed in range(passes):
            masks = random_masks(frozen, MEMBERS, ROWS, seed, requires_grad=True)
            logits = streams.masked(batch, masks.__getitem__, MEMBERS)
            leaves = [mask for layer in masks for mask in layer.values()]
            found += [logits.detach(), *torch.autograd.grad(logits.square().sum(), leaves)]
            found.append(streams.reference(batch))
    return found


@pytest.mark.parametrize("slots", [True, False])
@pytest.mark.parametrize(("name", "settings"), TINY_CASES)
def test_every_architecture_gives_the_same_bits(name, settings, slots):
    plain = gradients(tiny_model(name, settings), INTERCHANGE, checkpointing=True)
    flowing = gradients(streamed(tiny_model(name, settings), CPU, slots=slots), INTERCHANGE, checkpointing=True)
    assert all(map(torch.equal, plain, flowing))


@pytest.mark.parametrize("checkpointing", [False, True, "cpu"])
@pytest.mark.parametrize("ablation", [INTERCHANGE, ZERO])
def test_with_and_without_checkpointing(checkpointing, ablation):
    settings = {**TINY, "num_hidden_layers": 6}
    plain = gradients(tiny_model("llama", settings), ablation, checkpointing)
    flowing = gradients(streamed(tiny_model("llama", settings), CPU, slots=True), ablation, checkpointing)
    assert all(map(torch.equal, plain, flowing))


@pytest.mark.parametrize("layers", [1, 2])
def test_models_of_fewer_layers_than_slots_and_one(layers):
    settings = {**TINY, "num_hidden_layers": layers}
    plain = gradients(tiny_model("llama", settings), INTERCHANGE, True)
    for slots in (True, False):
        flowing = gradients(streamed(tiny_model("llama", settings), CPU, slots=slots), INTERCHANGE, True)
        assert all(map(torch.equal, plain, flowing))


def test_at_most_two_layers_have_weights_and_each_is_read_once_forward_and_once_backward(monkeypatch):
    from bigcircuit.model import layer_stream

    read = []
    plain = layer_stream._Slots._copy
    monkeypatch.setattr(
        layer_stream._Slots, "_copy", lambda self, index, *rest: (read.append(index), plain(self, index, *rest))[1]
    )
    settings = {**TINY, "num_hidden_layers": 5}
    frozen = streamed(tiny_model("llama", settings), CPU, slots=True)

    def held():
        """Layers whose weights are in memory: a placeholder has one entry."""
        return [
            index
            for index, layer in enumerate(frozen.layers)
            if any(p.numel() > 1 and p.untyped_storage().nbytes() > p.element_size() for p in layer.module.parameters())
        ]

    assert held() == []
    with Streams(frozen, INTERCHANGE) as streams:
        streams.places()  # runs small passes, once a model
    read.clear()
    seen = []
    for layer in frozen.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: seen.append(held()))
    batch = collate(tiny_examples(ROWS), full=False)
    masks = random_masks(frozen, MEMBERS, ROWS, requires_grad=True)
    with Streams(frozen, INTERCHANGE, True) as streams:
        logits = streams.masked(batch, masks.__getitem__, MEMBERS)
        logits.square().sum().backward()
    assert seen == [[index] for index in (0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0)]
    # The first layer is still there from the small pass, the last two are when the backward pass begins.
    assert read == [1, 2, 3, 4, 2, 1, 0]


def test_read_ahead_asks_for_the_layer_that_follows(monkeypatch):
    from bigcircuit.model import layer_stream

    asked = []
    monkeypatch.setattr(layer_stream, "_read", lambda ranges: asked.append({address for address, _ in ranges}))
    monkeypatch.setattr(layer_stream, "ThreadPoolExecutor", _AtOnce)
    frozen = streamed(tiny_model("llama", TINY), CPU)
    addresses = [{p.data_ptr() for p in layer.module.parameters()} for layer in frozen.layers]
    with Streams(frozen, INTERCHANGE) as streams:
        streams.places()  # runs small passes, once a model
    asked.clear()
    gradients(frozen, INTERCHANGE, True, passes=1)
    following = [next(i for i, own in enumerate(addresses) if own <= one) for one in asked]
    assert following == [1, 2, 1, 1, 0, 1, 1, 2, 0], "forward, backward, and a pass without gradients"


class _AtOnce:
    """Executor that runs a call when it is submitted."""

    def __init__(self, *_, **__):
        pass

    def submit(self, call, *arguments):
        call(*arguments)
        return self

    def done(self):
        return True


def test_mapped_memory_is_read(tmp_path):
    from bigcircuit.model.layer_stream import _read

    path = tmp_path / "weights"
    path.write_bytes(bytes(5 * 4096))
    mapped = torch.from_file(str(path), size=5 * 4096, dtype=torch.uint8)
    _read([(mapped.data_ptr() + 100, 3 * 4096)])  # not at the start of a page
    assert mapped.sum() == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_that_is_streamed(tmp_path, dtype):
    model = tiny_model("llama", TINY).model.to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path), dtype=dtype)
    plain = gradients(load_frozen(config), INTERCHANGE, True)
    flowing = gradients(load_frozen(config.model_copy(update={"weights": "stream"})), INTERCHANGE, True)
    assert all(map(torch.equal, plain, flowing))
    anonymous = gradients(
        find_sites(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=model.dtype)), INTERCHANGE, True
    )
    assert all(map(torch.equal, plain, anonymous))


def test_weights_that_need_a_cast_are_refused(tmp_path):
    tiny_model("llama", TINY).model.to(torch.bfloat16).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="which is bfloat16, and model.dtype is float32; set model.dtype to bfloat16"):
        load_frozen(ModelConfig(path=str(tmp_path), weights="stream"))
