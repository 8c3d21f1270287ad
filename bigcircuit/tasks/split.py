"""Divide examples into train, validation and test so that no prompt, clean or corrupted, is in two of them."""

import re
from collections.abc import Mapping, Sequence

import torch

from bigcircuit.errors import UserError
from bigcircuit.tasks.pair import Example, Pair

SPLITS = ("train", "validation", "test")
_PLACE = r"(:| row | #)\d+$"


def split(
    examples: Sequence[Example], pairs: Sequence[Pair], fractions: Mapping[str, float], seed: int
) -> dict[str, list[Example]]:
    """Examples by split, in the order of the data set.

    Splits given by the pairs win; then they must not share a prompt. Otherwise groups of examples that share prompts are
    dealt out in a seeded order, each to the split that is furthest below its fraction. Raises UserError when a given
    split overlaps another, when only some pairs have one, or when train or test would be empty.
    """
    given = [pairs[example.id].split for example in examples]
    chosen = _given(examples, given) if any(given) else _drawn(_groups(examples), fractions, seed)
    result: dict[str, list[Example]] = {name: [] for name in SPLITS}
    for example in sorted(examples, key=lambda e: e.id):
        result[chosen[example.id]].append(example)
    for name in ("train", "test"):
        if not result[name]:
            raise UserError(
                f"{re.sub(_PLACE, '', examples[0].source)}: the {name} split is empty "
                f"({len(examples)} pairs in {len(_groups(examples))} groups that share prompts); add pairs or "
                "change task.split"
            )
    return result


def _given(examples: Sequence[Example], given: Sequence[str]) -> dict[int, str]:
    owner: dict[tuple[int, ...], tuple[str, str]] = {}
    for example, name in zip(examples, given, strict=True):
        if not name:
            raise UserError(f"{example.source}: the row has no split while others have; fill in the column or drop it")
        for prompt in (example.clean, example.corrupted):
            other, source = owner.setdefault(prompt, (name, example.source))
            if other != name:
                raise UserError(
                    f"{example.source}: its prompt is in split {name} and, at {source}, in split {other}; remove one"
                )
    return {example.id: name for example, name in zip(examples, given, strict=True)}


def _groups(examples: Sequence[Example]) -> list[list[int]]:
    """Ids of examples connected by shared prompts (union-find), groups in order of their first example."""
    parent = {example.id: example.id for example in examples}

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    first: dict[tuple[int, ...], int] = {}
    for example in examples:
        for prompt in (example.clean, example.corrupted):
            parent[root(example.id)] = root(first.setdefault(prompt, example.id))
    groups: dict[int, list[int]] = {}
    for example in examples:
        groups.setdefault(root(example.id), []).append(example.id)
    return list(groups.values())


def _drawn(groups: Sequence[list[int]], fractions: Mapping[str, float], seed: int) -> dict[int, str]:
    """Deal the groups out, large ones first so that small ones can even out the sizes."""
    shuffled = torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed)).tolist()
    order = sorted(shuffled, key=lambda index: -len(groups[index]))
    everything = sum(map(len, groups))
    missing = {name: fractions[name] * everything for name in SPLITS if fractions[name]}
    chosen: dict[int, str] = {}
    for index in order:
        name = max(missing, key=lambda split: missing[split])
        missing[name] -= len(groups[index])
        chosen.update(dict.fromkeys(groups[index], name))
    return chosen
