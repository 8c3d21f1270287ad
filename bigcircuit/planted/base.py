"""Small models that solve their task and need all of their open nodes: the models that are widened.

A two-layer model learns z = S[R[x, y], c] with two random Latin squares: the prompts are all (x, y, c). Then every attention and
MLP neuron, of a mixture every expert, is closed alone, and nodes whose absence costs less than a threshold write zero from then on,
while the others are trained further, until each remaining node costs more. No gates, gradients or attributions are used: only the
effect itself.
"""

import itertools
import random
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from bigcircuit.ablation.ablation import INTERCHANGE
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.forward.streams import Streams
from bigcircuit.gates.discretise import Masks
from bigcircuit.metrics.score import score
from bigcircuit.model.granularity import ATTENTION, EXPERT_NEURON, GRANULARITIES, LEAVES, MLP
from bigcircuit.model.sites import FrozenModel, find_sites

SYMBOLS = 5
STEPS, MORE_STEPS, ROUNDS, ATTEMPTS = 700, 200, 10, 10
WORKS = 0.99
"""Least share of all prompts that a base answers right."""
_SPLITS = (("train", 0.5, 240), ("validation", 0.1, 40), ("test", 0.4, 160))
"""Name, share of the prompts, pairs."""
_LR, _SMOOTHING = 1e-2, 0.05
_SIZES: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_embd": 16, "n_layer": 2, "n_head": 4, "n_inner": 12, "n_positions": 8, "activation_function": "relu",
        "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    "llama": {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4,
        "intermediate_size": 12, "max_position_embeddings": 8,
    },
}  # fmt: skip
FAMILIES = tuple(_SIZES)


NodePlace = tuple[str, int, int]
"""Granularity, layer and index in it."""


class Base(NamedTuple):
    """A small model, its pairs, and the nodes that it needs."""

    model: Any
    pairs: list[dict[str, Any]]
    """Rows of a pair file, as token ids."""
    needed: dict[str, Tensor]
    """By granularity, bool [L, n]; the others write zero."""
    least: float
    """Nats: the smallest KL that closing a needed node alone costs, mean over pairs."""


class LookupTask(NamedTuple):
    """All prompts of a task and their answers."""

    prompts: Tensor
    """Token ids, [125, 4]."""
    answers: Tensor
    """Token ids, [125]."""


class Recipe(NamedTuple):
    """How models of one kind are made."""

    what: str
    """Name in errors."""
    new: Callable[[], Any]
    """Make an untrained model, from torch's global random state."""
    names: tuple[str, ...]
    """Granularities of the nodes that have to be needed."""
    columns: Callable[[FrozenModel, Sequence[NodePlace]], list[Tensor]]
    """Collect views of the output weights of nodes."""
    silent: Callable[[FrozenModel, random.Random], list[NodePlace]] = lambda *_: []
    """Choose nodes that write zero from the start."""
    fixed: Callable[[FrozenModel], list[nn.Parameter]] = lambda _: []
    """Collect parameters that are not trained."""


def make_base(family: str, seed: int, threshold: float = 0.1) -> Base:
    """Train a "gpt2" or "llama" model that solves its task and in which every needed neuron costs at least `threshold` nats.

    Takes about ten seconds. Raises RuntimeError, see `make_needed`.
    """
    recipe = Recipe(
        what=f"{family} model", new=partial(_new, family), names=("attention_neuron", "mlp_neuron"), columns=_columns
    )
    return make_needed(recipe, seed, threshold)


def make_needed(recipe: Recipe, seed: int, threshold: float) -> Base:
    """Train a model that solves its task and in which every needed node costs at least `threshold` nats.

    Failed training is repeated with another seed. Raises RuntimeError if all attempts fail.
    """
    for attempt in range(ATTEMPTS):
        base = _try(recipe, seed + 1000 * attempt, threshold)
        if base is not None:
            return base
    raise RuntimeError(f"seed {seed}: no {recipe.what} learned the task and needs all its nodes in {ATTEMPTS} attempts")


def _try(recipe: Recipe, seed: int, threshold: float) -> Base | None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = recipe.new()
    rng = random.Random(seed)
    task = lookup_task(rng)
    pairs, frozen = pairs_of(task, rng), find_sites(model)
    closed, fixed = recipe.silent(frozen, rng), recipe.fixed(frozen)
    learn(model, task, recipe.columns(frozen, closed), STEPS, fixed)
    for _ in range(ROUNDS):
        if accuracy(model, task) < WORKS:
            return None
        costs = knockouts(frozen, examples_of(pairs[::2]), closed, recipe.names)
        low = [node for node, cost in costs.items() if cost < threshold]
        if not low:
            return Base(model, pairs, _needed(frozen, recipe.names, closed), min(costs.values()))
        closed += low
        learn(model, task, recipe.columns(frozen, closed), MORE_STEPS, fixed)
    return None


def accuracy(model: Any, task: LookupTask) -> float:
    with torch.no_grad():
        predicted = model(input_ids=task.prompts, use_cache=False).logits[:, -1].argmax(-1)
    return float((predicted == task.answers).float().mean())


def _new(family: str) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    no_tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config = AutoConfig.for_model(
        family, vocab_size=SYMBOLS + 1, tie_word_embeddings=False, **no_tokens, **_SIZES[family]
    )
    return AutoModelForCausalLM.from_config(config)


def lookup_task(rng: random.Random) -> LookupTask:
    first, second = _latin_square(rng), _latin_square(rng)
    combinations = list(itertools.product(range(SYMBOLS), repeat=3))
    prompts = torch.tensor([[*symbols, SYMBOLS] for symbols in combinations])
    return LookupTask(prompts, torch.tensor([second[first[x][y]][c] for x, y, c in combinations]))


def _latin_square(rng: random.Random) -> list[list[int]]:
    rows, columns, names = (rng.sample(range(SYMBOLS), SYMBOLS) for _ in range(3))
    return [[names[(row + column) % SYMBOLS] for column in columns] for row in rows]


def pairs_of(task: LookupTask, rng: random.Random) -> list[dict[str, Any]]:
    """Draw distinct pairs of prompts with different answers; no prompt is in two splits."""
    order = rng.sample(range(len(task.prompts)), len(task.prompts))
    rows = []
    for split, share, count in _SPLITS:
        cut = round(share * len(task.prompts))
        own, order = order[:cut], order[cut:]
        numbers = [(a, b) for a, b in itertools.permutations(own, 2) if task.answers[a] != task.answers[b]]
        rows += [
            {
                "clean": task.prompts[clean].tolist(),
                "corrupted": task.prompts[corrupted].tolist(),
                "answers": [[int(task.answers[clean])]],
                "wrong_answers": [[int(task.answers[corrupted])]],
                "split": split,
            }
            for clean, corrupted in rng.sample(numbers, count)
        ]
    return rows


def examples_of(pairs: Sequence[dict[str, Any]]) -> list[Example]:
    """Convert rows of a pair file to examples."""
    return [
        Example(
            id=index,
            clean=tuple(row["clean"]),
            corrupted=tuple(row["corrupted"]),
            answers=(tuple(row["answers"][0]),),
            wrong_answers=(tuple(row["wrong_answers"][0]),),
            source="",
        )
        for index, row in enumerate(pairs)
    ]


def learn(
    model: Any, task: LookupTask, columns: Sequence[Tensor], steps: int, fixed: Sequence[nn.Parameter] = ()
) -> None:
    """Train on all prompts at once. Smoothed answers keep the KL of mistakes moderate.

    columns: views of output weights that stay zero. fixed: parameters that are not trained.
    """
    model.train().requires_grad_(True)
    for parameter in fixed:
        parameter.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        (p for p in model.parameters() if p.requires_grad), lr=_LR, weight_decay=0.01, betas=(0.9, 0.98)
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LR, steps)
    _silence(columns)
    for _ in range(steps):
        logits = model(input_ids=task.prompts, use_cache=False).logits[:, -1]
        optimizer.zero_grad()
        cross_entropy(logits, task.answers, label_smoothing=_SMOOTHING).backward()
        optimizer.step()
        schedule.step()
        _silence(columns)
    model.eval().requires_grad_(False)


def _columns(frozen: FrozenModel, closed: Sequence[NodePlace]) -> list[Tensor]:
    """Collect views of the output weights of neurons."""
    found = []
    for name, layer, node in closed:
        projection = getattr(frozen.layers[layer], ATTENTION if name == "attention_neuron" else MLP)
        by_neuron = projection.weight.data if hasattr(projection, "nx") else projection.weight.data.T
        found.append(by_neuron[node])
    return found


def _silence(columns: Sequence[Tensor]) -> None:
    for column in columns:
        column.zero_()


def knockouts(
    frozen: FrozenModel,
    examples: Sequence[Example],
    without: Sequence[NodePlace] = (),
    names: Sequence[str] = ("attention_neuron", "mlp_neuron"),
) -> dict[NodePlace, float]:
    """Measure the mean KL in nats that closing one node alone costs, for all but `without`."""
    everything = {
        name: torch.ones(len(frozen.shapes), g.width(frozen.shapes[0]), dtype=torch.bool)
        for name, g in GRANULARITIES.items()
        if name in names or name != LEAVES[EXPERT_NEURON]
    }
    nodes = [
        (name, layer, node)
        for name in names
        for layer in range(len(frozen.shapes))
        for node in range(everything[name].shape[1])
        if (name, layer, node) not in set(without)
    ]
    circuits: list[Masks] = []
    for name, layer, node in nodes:
        mask = everything[name].clone()
        mask[layer, node] = False
        circuits.append(everything | {name: mask})
    with Streams(frozen, INTERCHANGE) as streams:
        costs = score(streams, examples, circuits, MicroBatches(len(examples)), at_once=16)["kl"].mean(1)
    return dict(zip(nodes, costs.tolist(), strict=True))


def _needed(frozen: FrozenModel, names: Sequence[str], closed: Sequence[NodePlace]) -> dict[str, Tensor]:
    needed = {
        name: torch.ones(len(frozen.shapes), GRANULARITIES[name].width(frozen.shapes[0]), dtype=torch.bool)
        for name in names
    }
    for name, layer, node in closed:
        needed[name][layer, node] = False
    return needed
