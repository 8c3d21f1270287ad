"""Splits: nothing that is trained on is tested, whatever prompts the pairs share."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from bigcircuit.data.pair import Example, Pair
from bigcircuit.data.readers.read import read_pairs
from bigcircuit.data.splits import SPLITS, split
from bigcircuit.data.tokenize import tokenize_pairs
from bigcircuit.errors import UserError

FRACTIONS = {"train": 0.4, "validation": 0.1, "test": 0.5}


def make(prompts, splits=None):
    """Examples and pairs from (clean, corrupted) numbers."""
    examples = [
        Example(id=i, clean=(a, 0), corrupted=(b, 0), answers=((1,),), wrong_answers=((2,),), source=f"f.jsonl:{i + 1}")
        for i, (a, b) in enumerate(prompts)
    ]
    names = splits or [""] * len(prompts)
    return examples, [
        Pair(clean=str(a), corrupted=str(b), answers=("x",), wrong_answers=("y",), split=name)
        for (a, b), name in zip(prompts, names, strict=True)
    ]


def prompts_of(examples):
    return {prompt for example in examples for prompt in (example.clean, example.corrupted)}


def components(prompts) -> list[set]:
    """Connected components by repeated merging of sets."""
    groups: list[set] = []
    for pair in prompts:
        touching = [group for group in groups if group & set(pair)]
        groups = [group for group in groups if not group & set(pair)] + [set(pair).union(*touching)]
    return groups


def count_groups(prompts) -> int:
    return len(components(prompts))


graphs = st.integers(2, 60).flatmap(
    lambda n: st.lists(
        st.tuples(st.integers(0, n), st.integers(0, n)).filter(lambda p: p[0] != p[1]), min_size=1, max_size=60
    )
)


@settings(deadline=None, max_examples=300)
@given(graphs, st.integers(0, 2**31))
def test_no_prompt_is_in_two_splits(prompts, seed):
    examples, pairs = make(prompts)
    if count_groups(prompts) < 2:
        with pytest.raises(UserError, match="f.jsonl: the train split is empty .* 1 groups that share prompts"):
            split(examples, pairs, FRACTIONS, seed)
        return
    result = split(examples, pairs, FRACTIONS, seed)
    assert tuple(result) == SPLITS
    assert sorted(e.id for part in result.values() for e in part) == list(range(len(examples)))
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not prompts_of(result[one]) & prompts_of(result[other])
    assert result["train"] and result["test"]


def test_clean_of_one_and_corrupted_of_another_stay_together():
    """A chain through both columns is one group."""
    chain = [(1, 2), (3, 2), (3, 4), (5, 4)]
    loose = [(10 + 2 * i, 11 + 2 * i) for i in range(20)]
    result = split(*make(chain + loose), FRACTIONS, seed=0)
    assert any({0, 1, 2, 3} <= {e.id for e in part} for part in result.values())


@pytest.mark.parametrize("fractions", [FRACTIONS, {"train": 0.8, "validation": 0, "test": 0.2}])
def test_fractions_of_independent_pairs(fractions):
    result = split(*make([(2 * i, 2 * i + 1) for i in range(200)]), fractions, seed=5)
    assert {name: len(part) for name, part in result.items()} == {n: round(f * 200) for n, f in fractions.items()}


def test_same_seed_same_split_and_another_seed_another():
    data = make([(2 * i, 2 * i + 1) for i in range(50)])
    assert split(*data, FRACTIONS, seed=1) == split(*data, FRACTIONS, seed=1)
    assert split(*data, FRACTIONS, seed=1) != split(*data, FRACTIONS, seed=2)


def test_the_global_random_state_has_no_part():
    import torch

    data = make([(2 * i, 2 * i + 1) for i in range(50)])
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = split(*data, FRACTIONS, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    assert split(*data, FRACTIONS, seed=1) == first


def test_every_split_keeps_the_order_of_the_data():
    examples, pairs = make([(2 * i, 2 * i + 1) for i in range(50)])
    result = split(examples[::-1], pairs, FRACTIONS, seed=1)
    assert all([e.id for e in part] == sorted(e.id for e in part) for part in result.values())


def test_given_splits_win():
    names = ["test", "train", "train", "validation", "test", "test"]
    examples, pairs = make([(2 * i, 2 * i + 1) for i in range(6)], names)
    for seed in range(5):
        result = split(examples, pairs, FRACTIONS, seed)
        assert {e.id: name for name, part in result.items() for e in part} == dict(enumerate(names))


def test_given_splits_follow_the_example_when_some_were_left_out():
    """Ids are places in the whole data set."""
    examples, pairs = make([(2 * i, 2 * i + 1) for i in range(4)], ["train", "test", "train", "test"])
    result = split(examples[2:], pairs, FRACTIONS, seed=0)
    assert [[e.id for e in result[name]] for name in SPLITS] == [[2], [], [3]]


@pytest.mark.parametrize("shared", [(0, 9), (9, 0), (1, 9), (9, 1)])
def test_given_splits_that_share_a_prompt_are_refused(shared):
    """Also when it is clean in one and corrupted in the other."""
    examples, pairs = make([(0, 1), (2, 3), shared], ["train", "test", "test"])
    with pytest.raises(UserError, match=r"^f.jsonl:3: its prompt is in split test and, at f.jsonl:1, in split train"):
        split(examples, pairs, FRACTIONS, seed=0)


def test_given_splits_may_share_prompts_inside_one():
    examples, pairs = make([(0, 1), (0, 2), (3, 4)], ["train", "train", "test"])
    assert len(split(examples, pairs, FRACTIONS, seed=0)["train"]) == 2


@pytest.mark.parametrize("place", [":7", " row 7", " #7"])
def test_an_empty_split_names_the_file_alone(place):
    examples, pairs = make([(0, 1)])
    examples = [examples[0]._replace(source="hf://a/b" + place)]
    with pytest.raises(UserError, match=r"^hf://a/b: the train split is empty"):
        split(examples, pairs, FRACTIONS, seed=0)


@settings(deadline=None, max_examples=100)
@given(graphs, st.integers(0, 2**31))
def test_sizes_miss_the_fractions_by_less_than_the_largest_group(prompts, seed):
    examples, pairs = make(prompts)
    if count_groups(prompts) < 2:
        return
    largest = max(sum(1 for pair in prompts if set(pair) & group) for group in components(prompts))
    for name, part in split(examples, pairs, FRACTIONS, seed).items():
        assert abs(len(part) - FRACTIONS[name] * len(prompts)) <= largest


PAIR_FILES = [
    *(f"babyllama105/{name}" for name in ("natural_pronoun_swap", "pronoun_noun_name")),
    *(f"stories260k/{name}" for name in ("name_copy_same_gender", "natural_pronoun_swap", "object_induction")),
    *(f"stories260k/{name}" for name in ("pronoun_name_only", "pronoun_noun_name", "pronoun_noun_only")),
]


@pytest.mark.parametrize("name", PAIR_FILES)
def test_real_files_can_be_halved(shared, name):
    """Their prompts are shared by few pairs only, so that whole groups still make even halves."""
    pairs = read_pairs(str(shared / "data/pairs" / f"{name}.jsonl"))
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / name.split("/")[0])
    examples = tokenize_pairs(pairs, tokenizer, 512)
    result = split(examples, pairs, {"train": 0.5, "validation": 0, "test": 0.5}, seed=0)
    assert not prompts_of(result["train"]) & prompts_of(result["test"])
    assert len(result["train"]) + len(result["test"]) == len(pairs) and not result["validation"]
    assert abs(len(result["train"]) - len(result["test"])) <= 1


def templated(names, shared=()):
    """One example a template name, all prompts distinct unless `shared` names two indices with the same clean prompt."""
    examples, pairs = make([(2 * i, 2 * i + 1) for i in range(len(names))])
    for first, second in shared:
        examples[second] = examples[second]._replace(clean=examples[first].clean)
    return examples, [pair._replace(template=name) for pair, name in zip(pairs, names, strict=True)]


BY_TEMPLATE = {**FRACTIONS, "by": "template", "off_distribution": 0.25}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from("abcdefgh"), min_size=12, max_size=40), st.integers(0, 2**31))
def test_a_template_that_is_held_out_is_in_no_other_split(names, seed):
    if len(set(names)) < 2 or len(names) - max(map(names.count, set(names))) < 6:
        return
    examples, pairs = templated(names)
    try:
        result = split(examples, pairs, BY_TEMPLATE, seed)
    except UserError as error:
        assert "split is empty" in str(error)
        return
    held = {names[e.id] for e in result["off_distribution"]}
    rest = {names[e.id] for name in FRACTIONS for e in result[name]}
    assert held and not held & rest and held | rest == set(names)
    assert len(held) == min(max(1, round(0.25 * len(set(names)))), len(set(names)) - 1)
    assert sum(map(len, result.values())) == len(names)


def test_without_the_setting_templates_change_nothing():
    examples, pairs = templated(["a", "b"] * 10)
    plain = [pair._replace(template="") for pair in pairs]
    settings_off = {**BY_TEMPLATE, "by": "prompt"}
    assert split(examples, pairs, settings_off, 3) == split(examples, plain, FRACTIONS, 3)


@pytest.mark.parametrize(
    ("names", "shared", "message"),
    [
        (["a", "b", ""] * 4, (), "has no template and task.split.by is template"),
        (["a"] * 8, (), "all pairs are of one template"),
        (["a", "b"] * 6, ((0, 1),), "shares a prompt with a pair of another one"),
    ],
)
def test_templates_that_cannot_be_held_out(names, shared, message):
    examples, pairs = templated(names, shared)
    with pytest.raises(UserError, match=message):
        split(examples, pairs, BY_TEMPLATE, seed=0)
