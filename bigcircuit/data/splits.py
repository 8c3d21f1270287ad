"""Divide examples into train, validation and test so that no prompt, clean or corrupted, is in two splits.

With `task.split.by: template`, the pairs of some templates are held out first, as a split `off_distribution`.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bigcircuit.data.pair import Example, Pair
from bigcircuit.errors import UserError

SPLITS = ("train", "validation", "test")
OFF_DISTRIBUTION = "off_distribution"
"""Name of the split whose templates are in no other split."""
_ROW_SUFFIX = r"(:| row | #)\d+$"


def split(
    examples: Sequence[Example], pairs: Sequence[Pair], settings: Mapping[str, Any], seed: int
) -> dict[str, list[Example]]:
    """Divide examples. Returns the examples of each split in the order of the data set.

    settings: as in SplitConfig. Splits that the pairs name are used as they are, if no two share a prompt. Otherwise groups of
    examples that share prompts are assigned in a seeded order, each to the split that is furthest below its fraction; with
    `by: template` the examples of some templates are held out first. Raises UserError if two named splits share a prompt, if
    only some pairs name a split, if a template is missing or shares a prompt with a held-out template, or if train or test
    would be empty.
    """
    given = [pairs[example.id].split for example in examples]
    if any(given):
        chosen = _named_splits(examples, given)
    else:
        held = (
            _held_out(examples, pairs, settings["off_distribution"], seed) if settings.get("by") == "template" else {}
        )
        groups = _groups([example for example in examples if example.id not in held])
        chosen = held | _assign(groups, settings, seed)
    names = (*SPLITS, OFF_DISTRIBUTION) if OFF_DISTRIBUTION in chosen.values() else SPLITS
    result: dict[str, list[Example]] = {name: [] for name in names}
    for example in sorted(examples, key=lambda e: e.id):
        result[chosen[example.id]].append(example)
    for name in ("train", "test"):
        if not result[name]:
            raise UserError(
                f"{re.sub(_ROW_SUFFIX, '', examples[0].source)}: the {name} split is empty "
                f"({len(examples)} pairs in {len(_groups(examples))} groups that share prompts); add pairs or "
                "change task.split"
            )
    return result


def split_windows(
    examples: Sequence[Example], given: Sequence[str], settings: Mapping[str, Any], seed: int
) -> dict[str, list[Example]]:
    """Divide windows of general text, all windows of a document into one split. Arguments as for `split`.

    given: split that the row of each document names, by `Example.document`; all empty where none does. Documents count by their
    windows. Raises UserError if only some documents name a split, or if train or test would be empty.
    """
    windows: dict[int, list[int]] = {}
    for example in examples:
        windows.setdefault(example.document, []).append(example.id)
    if any(given):
        for example in examples:
            if not given[example.document]:
                raise UserError(
                    f"{example.source}: the row has no split while others have; fill in the column or drop it"
                )
        chosen = {example.id: given[example.document] for example in examples}
    else:
        chosen = _assign(list(windows.values()), settings, seed)
    found = {name: [e for e in examples if chosen[e.id] == name] for name in SPLITS}
    for name in ("train", "test"):
        if not found[name]:
            raise UserError(
                f"{re.sub(_ROW_SUFFIX, '', examples[0].source)}: the {name} split is empty ({len(windows)} documents, and all "
                "windows of a document are in one split); add documents or change task.split"
            )
    return found


def _named_splits(examples: Sequence[Example], given: Sequence[str]) -> dict[int, str]:
    """Check the splits that the pairs name. Returns the split by Example.id."""
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


def _held_out(examples: Sequence[Example], pairs: Sequence[Pair], share: float, seed: int) -> dict[int, str]:
    """Choose held-out templates by seed. Returns OFF_DISTRIBUTION by the Example.id of their examples. share: of the templates."""
    source = re.sub(_ROW_SUFFIX, "", examples[0].source)
    for example in examples:
        if not pairs[example.id].template:
            raise UserError(
                f"{example.source}: the pair has no template and task.split.by is template; add a column template or set "
                "task.split.by to prompt"
            )
    templates = sorted({pairs[example.id].template for example in examples})
    if len(templates) < 2:
        raise UserError(
            f"{source}: all pairs are of one template, so none can be held out; set task.split.by to prompt"
        )
    order = torch.randperm(len(templates), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(max(1, round(share * len(templates))), len(templates) - 1)
    held = {templates[index] for index in order[:count]}
    found = {e.id: OFF_DISTRIBUTION if pairs[e.id].template in held else "" for e in examples}
    for group in _groups(examples):
        if len({found[index] for index in group}) > 1:
            inside = next(e for e in examples if e.id in group and found[e.id])
            raise UserError(
                f"{inside.source}: its template is held out but it shares a prompt with a pair of another one; give both the "
                "same template or set task.split.by to prompt"
            )
    return {index: name for index, name in found.items() if name}


def _groups(examples: Sequence[Example]) -> list[list[int]]:
    """Group the ids of examples connected by shared prompts (union-find), groups in order of their first example."""
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


def _assign(groups: Sequence[list[int]], fractions: Mapping[str, Any], seed: int) -> dict[int, str]:
    """Assign groups to splits, large groups first so that small groups can even out the sizes. Returns the split by Example.id."""
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
