"""Task builders: pairs align, answers are right by an independent reading of the prompt, and the same seed gives the same."""

import itertools
import random
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bigcircuit.data import builders
from bigcircuit.data.builders import BUILDERS, LIST_BUILDERS, gendered_pronoun, ioi
from bigcircuit.data.builders.words import EVENTS, MEN, NOUNS, OBJECTS, PLACES, WOMEN, collect_pairs, single_token_words
from bigcircuit.data.pair import Pair
from bigcircuit.data.tokenize import tokenize_pairs
from bigcircuit.errors import UserError
from bigcircuit.model.load import EMBEDDED as PATH

SIZE = 60


class Promise(NamedTuple):
    """What a builder promises beyond the contract of `Builder`, which is all that a new builder has to keep."""

    many: bool = False
    """It has SIZE pairs and more, so another seed gives other pairs."""
    embedded: bool = False
    """Its words are in the small English of the embedded model."""
    single_tokens: bool = False
    """Its answers are single tokens, so a tokenizer of bytes has none."""
    distinct_first: bool = False
    """Right and wrong answers differ in their first token."""
    space: bool = False
    """Its answers begin with a space."""


PROMISES = {
    "arithmetic": Promise(many=True, embedded=True, space=True),
    "boolean": Promise(many=True, embedded=True, distinct_first=True, space=True),
    "docstring": Promise(many=True, single_tokens=True, distinct_first=True, space=True),
    "gendered_pronoun": Promise(*[True] * 5),
    "greater_than": Promise(many=True, embedded=True, single_tokens=True, distinct_first=True),
    "induction": Promise(*[True] * 5),
    "ioi": Promise(*[True] * 5),
    "subject_verb": Promise(many=True, single_tokens=True, distinct_first=True, space=True),
}


def promise(name: str) -> Promise:
    return PROMISES.get(name, Promise())


CASES = [("gpt2", name) for name in BUILDERS] + [("embedded", name) for name in BUILDERS if promise(name).embedded]


@pytest.fixture(scope="session")
def tokenizers(request):
    """Tokenizers by name, opened when asked for; GPT-2's skips where it is not at hand."""
    embedded = AutoTokenizer.from_pretrained(PATH)
    return lambda name: embedded if name == "embedded" else request.getfixturevalue("gpt2_tokenizer")


@pytest.fixture(scope="session", params=CASES, ids="-".join)
def case(request, tokenizers):
    """A tokenizer, the name of a task, and pairs of it."""
    which, name = request.param
    tokenizer = tokenizers(which)
    return tokenizer, name, BUILDERS[name](tokenizer, SIZE, random.Random(3))


def promising(field: str) -> list[tuple[str, str]]:
    """The cases of the tasks that promise this."""
    return [case for case in CASES if getattr(promise(case[1]), field)]


def pairs_of(name: str, tokenizer, size: int = SIZE) -> list[Pair]:
    return BUILDERS[name](tokenizer, size, random.Random(5))


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


def test_pairs_align_when_read_with_their_answers(case):
    tokenizer, name, pairs = case
    for pair in pairs:
        clean, corrupted = ids(tokenizer, pair.clean), ids(tokenizer, pair.corrupted)
        assert len(clean) == len(corrupted)
        for answer in pair.answers + pair.wrong_answers:
            after_clean, after_corrupted = (ids(tokenizer, prompt + answer) for prompt in pair[:2])
            assert after_clean[: len(clean)] == clean
            assert after_corrupted[: len(clean)] == corrupted
            assert after_clean[len(clean) :] == after_corrupted[len(clean) :] != []


@pytest.mark.parametrize("case", promising("distinct_first"), indirect=True, ids="-".join)
def test_first_tokens_of_right_and_wrong_answers_differ(case):
    tokenizer, _, pairs = case
    for pair in pairs:
        end = len(ids(tokenizer, pair.clean))
        right, wrong = ({ids(tokenizer, pair.clean + a)[end] for a in group} for group in pair[2:4])
        assert not right & wrong


@pytest.mark.parametrize("case", promising("single_tokens"), indirect=True, ids="-".join)
def test_answers_are_single_tokens(case):
    tokenizer, _, pairs = case
    for pair in pairs:
        end = len(ids(tokenizer, pair.clean))
        assert all(len(ids(tokenizer, pair.clean + a)) == end + 1 for a in pair.answers + pair.wrong_answers)


def test_prompts_are_distinct_named_and_not_divided(case):
    _, name, pairs = case
    assert 0 < len(pairs) <= SIZE
    assert len(pairs) == SIZE or not promise(name).many
    assert len({pair.clean for pair in pairs}) == len(pairs)
    assert [pair.source for pair in pairs] == [f"{name} #{i + 1}" for i in range(len(pairs))]
    assert {pair.split for pair in pairs} == {""}
    assert all(answer[0] == " " for pair in pairs for answer in pair.answers) or not promise(name).space


def test_same_seed_same_pairs_other_seed_other_pairs(case):
    tokenizer, name, pairs = case
    assert BUILDERS[name](tokenizer, SIZE, random.Random(3)) == pairs
    assert BUILDERS[name](tokenizer, SIZE, random.Random(4)) != pairs or not promise(name).many


def test_the_reader_of_tasks_accepts_them(case):
    tokenizer, _, pairs = case
    assert len(tokenize_pairs(pairs, tokenizer, max_tokens=256)) == len(pairs)


@pytest.fixture(params=["gpt2", "embedded"])
def tokenizer(request, tokenizers):
    return tokenizers(request.param)


def names_in(prompt: str) -> list[str]:
    return [word for word in re.findall(r"\w+", prompt) if word in WOMEN + MEN]


def test_ioi_answers_with_the_name_that_is_said_once(tokenizer):
    orders = set()
    for pair in pairs_of("ioi", tokenizer):
        for prompt, right, wrong in ((pair.clean, pair[2], pair[3]), (pair.corrupted, pair[3], pair[2])):
            first, second, giver = names_in(prompt)
            assert (first != second) and giver in (first, second)
            assert wrong == (f" {giver}",)
            assert right == (f" {({first, second} - {giver}).pop()}",)
        orders.add(names_in(pair.clean).index(pair.wrong_answers[0].strip()))
    assert orders == {0, 1}  # BABA and ABBA


def test_greater_than_divides_the_years_at_the_first_one(tokenizer):
    for pair in pairs_of("greater_than", tokenizer):
        century, year, again = re.fullmatch(
            r"The \w+ lasted from the year (..)(..) to the year (..)", pair.clean
        ).groups()
        assert century == again and pair.corrupted == pair.clean.replace(f"{century}{year}", f"{century}01")
        assert all(int(answer) > int(year) for answer in pair.answers)
        assert all(int(answer) <= int(year) for answer in pair.wrong_answers)
        years = [f"{y:02d}" for y in range(100)]
        whole = [y for y in years if tokenizer.tokenize(f" {century}{y}") == [f"Ġ{century}", y]]
        assert sorted(pair.answers + pair.wrong_answers) == whole


def test_pronouns_agree_with_the_name(tokenizer):
    pronouns = set()
    for pair in pairs_of("gendered_pronoun", tokenizer):
        for prompt, right, wrong in ((pair.clean, pair[2], pair[3]), (pair.corrupted, pair[3], pair[2])):
            (name,) = names_in(prompt)
            assert (right, wrong) == (((" she",), (" he",)) if name in WOMEN else ((" he",), (" she",)))
        pronouns |= set(pair.answers)
    assert pronouns == {" he", " she"}


def test_names_have_one_gender():
    assert not set(WOMEN) & set(MEN)
    assert len(WOMEN) == len(MEN) == 24


def test_docstring_asks_for_the_parameter_after_the_described_ones(gpt2_tokenizer):
    for pair in pairs_of("docstring", gpt2_tokenizer):
        clean, corrupted = (re.search(r"\(self, (.*)\)", prompt)[1].split(", ") for prompt in pair[:2])
        described = re.findall(r":param (\w+):", pair.clean)
        assert described == re.findall(r":param (\w+):", pair.corrupted) == clean[2:4]
        assert pair.answers == (f" {clean[4]}",)
        assert len(clean) == len(corrupted) == 6
        assert pair.answers[0].strip() not in corrupted
        assert {w.strip() for w in pair.wrong_answers} == (set(clean) | set(corrupted)) - {clean[4]}
        compile(f'{pair.clean}{pair.answers[0]}: x\n    """\n', "prompt", "exec")


def successor(prompt: str) -> str:
    """What followed the last word where it stood before."""
    *words, last = prompt.split()
    return words[words.index(last) + 1]


def test_induction_answers_with_what_followed_before(tokenizer):
    for pair in pairs_of("induction", tokenizer):
        assert pair.answers == (f" {successor(pair.clean)}",)
        assert pair.wrong_answers == (f" {successor(pair.corrupted)}",)
        assert sum(a != b for a, b in zip(pair.clean.split(), pair.corrupted.split(), strict=True)) == 1


def test_verb_agrees_with_the_subject(gpt2_tokenizer):
    singular, plural = (" is", " was", " has"), (" are", " were", " have")
    agreeing = set()
    for pair in pairs_of("subject_verb", gpt2_tokenizer):
        _, subject, *rest = pair.clean.split()
        expected, other = (plural, singular) if subject.endswith("s") else (singular, plural)
        assert pair.answers[0] in expected
        assert pair.wrong_answers == (other[expected.index(pair.answers[0])],)
        _, changed, *same = pair.corrupted.split()
        assert same == rest and {subject, changed} == {subject.rstrip("s"), subject.rstrip("s") + "s"}
        agreeing.add(subject.endswith("s") == rest[-1].endswith("s"))
    assert agreeing == {True, False}  # the neighbour does not give the number away


def test_arithmetic_is_right(tokenizer):
    signs = set()
    for pair in pairs_of("arithmetic", tokenizer):
        assert int(pair.answers[0]) == eval(pair.clean.removesuffix("=")) >= 0
        assert int(pair.wrong_answers[0]) == eval(pair.corrupted.removesuffix("="))
        signs.add(pair.clean.split()[1])
    assert signs == {"+", "-"}


def test_boolean_values_are_right_and_one_word_flips_them(tokenizer):
    values = set()
    for pair in pairs_of("boolean", tokenizer):
        clean, corrupted = (eval(prompt.removesuffix(" is")) for prompt in pair[:2])
        assert pair.answers == (f" {clean}",) and pair.wrong_answers == (f" {corrupted}",)
        assert clean is not corrupted
        assert sum(a != b for a, b in zip(pair.clean.split(), pair.corrupted.split(), strict=True)) == 1
        values.add(clean)
    assert values == {True, False}


def test_all_boolean_expressions_are_found_when_more_are_asked_for(gpt2_tokenizer):
    terms = ["True", "False", "not True", "not False"]
    shapes = ["( {} {} {} ) {} {}", "{} {} ( {} {} {} )"]
    every = {s.format(a, p, b, q, c) for s in shapes for a, b, c in itertools.product(terms, repeat=3)
             for p, q in itertools.product(["and", "or"], repeat=2)}  # fmt: skip
    flip = {"True": "False", "False": "True"}
    deciding = set()
    for text in every:
        words = text.split()
        others = [" ".join([*words[:i], flip[w], *words[i + 1 :]]) for i, w in enumerate(words) if w in flip]
        if any(eval(other) != eval(text) for other in others):
            deciding.add(f"{text} is")
    assert {pair.clean for pair in pairs_of("boolean", gpt2_tokenizer, 10_000)} == deciding


def test_all_pronoun_prompts_are_found_when_more_are_asked_for(tokenizer):
    assert len(pairs_of("gendered_pronoun", tokenizer, 10_000)) == len(gendered_pronoun.FRAMES) * 48


@pytest.mark.parametrize("name", BUILDERS)
def test_a_tokenizer_of_bytes_gets_aligned_pairs_or_one_line(name):
    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    raw = Tokenizer(models.BPE(alphabet, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    try:
        pairs = BUILDERS[name](tokenizer, 20, random.Random(0))
    except UserError as error:
        assert "\n" not in str(error) and "pair file" in str(error)
    else:
        assert not promise(name).single_tokens
        assert len(tokenize_pairs(pairs, tokenizer, 256)) == len(pairs) == (20 if promise(name).many else len(pairs))


def test_words_that_are_missing_are_named():
    with pytest.raises(UserError, match=r"0 of 2 names .* needs 1 \(missing: Qwzyx, Vbnmq\); write a pair file"):
        single_token_words(AutoTokenizer.from_pretrained(PATH), ["Qwzyx", "Vbnmq"], 1, "names")


def test_the_reason_is_told_when_no_prompt_fits():
    tokenizer = AutoTokenizer.from_pretrained(PATH)
    longer = Pair(clean="Mary", corrupted="Mary and Tom", answers=(" he",), wrong_answers=(" she",))
    with pytest.raises(UserError, match=r"^task x: no prompt fits this tokenizer \('Mary': clean has 2 tokens"):
        collect_pairs("x", tokenizer, 3, random.Random(0), lambda _: longer)


def test_a_tokenizer_that_puts_a_space_in_front_has_single_tokens():
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    words = WOMEN + MEN + PLACES + OBJECTS + re.findall(r"\w+", " ".join(ioi.FRAMES))
    raw.train_from_iterator([" ".join(words)] * 3, trainers.BpeTrainer(vocab_size=2000, show_progress=False))
    raw.pre_tokenizer = None  # from here on as in the tokenizers of Llama 2 and Mistral
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    assert len(tokenizer(" Mary")["input_ids"]) == 2
    assert single_token_words(tokenizer, WOMEN, 1, "names") == WOMEN
    assert len(pairs_of("ioi", tokenizer, 20)) == 20


def test_word_lists_hold_no_word_twice():
    for words in (WOMEN + MEN, PLACES, OBJECTS, NOUNS, EVENTS):
        assert len(set(words)) == len(words)


def test_a_builder_with_few_prompts_gives_the_ones_it_has():
    def draw_pair(rng):
        clean, corrupted = rng.sample(WOMEN[:5], 2)
        return Pair(clean=f"When {clean}", corrupted=f"When {corrupted}", answers=(" she",), wrong_answers=(" he",))

    pairs = collect_pairs("few", AutoTokenizer.from_pretrained(PATH), SIZE, random.Random(0), draw_pair)
    assert sorted(pair.clean for pair in pairs) == sorted(f"When {name}" for name in WOMEN[:5])


def test_every_file_that_builds_is_a_builder():
    files = {file.stem for file in Path(builders.__file__).parent.glob("*.py")} - {"__init__", "words"}
    assert {*BUILDERS, *LIST_BUILDERS} == files
