"""Tokenisation of prompt and answer: where the context ends, whatever the tokenizer does at the boundary."""

import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from bigcircuit.config.schema import ModelConfig
from bigcircuit.data.builders import BUILDERS
from bigcircuit.data.builders.words import MEN, NOUNS, WOMEN
from bigcircuit.data.pair import Pair
from bigcircuit.data.readers.read import read_pairs
from bigcircuit.data.tokenize import added_tokens, tokenize_pairs
from bigcircuit.errors import UserError
from bigcircuit.model.load import load_tokenizer

MERGES = [("1", "3"), ("1", "5"), ("5", "3"), ("0", "0"), ("13", "00"), ("a", "b"), ("_", "a")]


def years(*, metaspace: bool = False) -> PreTrainedTokenizerFast:
    """Byte pairs written by hand: 13|53 stay apart and 1300 is one token."""
    words = dict.fromkeys([*"0135abc_^$", *(one + two for one, two in MERGES)])
    vocabulary = {word: number for number, word in enumerate([*words, "▁"])}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=MERGES))
    if metaspace:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        raw.decoder = decoders.Metaspace(prepend_scheme="always", split=False)
    else:
        raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="^", eos_token="$")


@pytest.fixture(scope="module")
def embedded_tokenizer():
    return load_tokenizer(ModelConfig())


def spell(tokenizer, ids):
    return tuple(tokenizer.convert_ids_to_tokens(list(ids)))


def divided(tokenizer, clean, corrupted, answers, wrong, **settings):
    """The one example of a pair, in tokens one can read."""
    example = tokenize_pairs(
        [Pair(clean=clean, corrupted=corrupted, answers=answers, wrong_answers=wrong, split="", source="f:1")],
        tokenizer,
        64,
        **settings,
    )[0]
    return [
        spell(tokenizer, example.clean),
        spell(tokenizer, example.corrupted),
        *(tuple(spell(tokenizer, ids) for ids in group) for group in (example.answers, example.wrong_answers)),
    ]


def test_the_plain_case():
    assert divided(years(), "a13", "c13", ("53",), ("15",)) == [("a", "13"), ("c", "13"), (("53",),), (("15",),)]


def test_an_answer_that_merges_into_the_prompt_does_not_move_the_others():
    """1300 is one token, but the year 00 competes with 53 after 13."""
    assert divided(years(), "a13", "c13", ("53",), ("00", "15")) == [
        ("a", "13"),
        ("c", "13"),
        (("53",),),
        (("00",), ("15",)),
    ]


def test_merges_that_differ_between_the_prompts():
    """Nothing merges after 15, so that both prompts must be divided in the same place."""
    assert divided(years(), "a13", "a15", ("53",), ("00",)) == [("a", "13"), ("a", "15"), (("53",),), (("00",),)]


def test_when_every_answer_merges_the_context_gives_way():
    """A space, here _, before the answer belongs to its token: the model never sees it alone in a text."""
    assert divided(years(), "1_", "5_", ("ac",), ("aa",)) == [("1",), ("5",), (("_a", "c"),), (("_a", "a"),)]


def test_a_trailing_space_with_the_embedded_tokenizer(embedded_tokenizer):
    with_space = divided(embedded_tokenizer, "Anna gave ", "Emma gave ", ("Anna",), ("Emma",))
    without = divided(embedded_tokenizer, "Anna gave", "Emma gave", (" Anna",), (" Emma",))
    assert with_space == without
    assert without[2] == (("ĠAnna",),)


def test_a_tokenizer_that_adds_a_space_falls_back_to_the_common_context():
    """Alone, 00 would read as a word of its own; the joined text must be kept instead."""
    tokenizer = years(metaspace=True)
    clean, corrupted, right, wrong = divided(tokenizer, "a13", "c13", ("53",), ("00",))
    assert (clean, corrupted) == (("▁", "a"), ("▁", "c"))
    assert (right, wrong) == ((("13", "53"),), (("1300",),))


def test_context_and_continuation_are_the_tokens_of_the_joined_text(embedded_tokenizer):
    """For every task of the embedded model: nothing is lost or doubled at the boundary."""
    for name in ("ioi", "greater_than", "gendered_pronoun", "induction"):
        pairs = BUILDERS[name](embedded_tokenizer, 30, random.Random(0))
        for pair, example in zip(pairs, tokenize_pairs(pairs, embedded_tokenizer, 128), strict=True):
            for prompt, context in ((pair.clean, example.clean), (pair.corrupted, example.corrupted)):
                texts = (*pair.answers, *pair.wrong_answers)
                for text, ids in zip(texts, (*example.answers, *example.wrong_answers), strict=True):
                    assert list(context + ids) == embedded_tokenizer(prompt + text)["input_ids"]


def closing(tokenizer):
    """The same tokenizer, opening and closing every text."""
    raw = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    marks = [("<open>", raw.token_to_id("^")), ("<close>", raw.token_to_id("$"))]
    raw.post_processor = processors.TemplateProcessing(single="<open> $A <close>", special_tokens=marks)
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="^", eos_token="$")


def test_the_end_that_some_tokenizers_append_is_no_part_of_the_prompt():
    tokenizer = closing(years())
    assert spell(tokenizer, tokenizer("a13")["input_ids"]) == ("^", "a", "13", "$")
    assert divided(tokenizer, "a13", "c13", ("53",), ("00",)) == [
        ("^", "a", "13"),
        ("^", "c", "13"),
        (("53",),),
        (("00",),),
    ]


def test_an_end_token_of_the_text_itself_is_a_part_of_it():
    """Only what the tokenizer has added is cut: with one that ends every text, and with one that does not."""
    for tokenizer, start in ((closing(years()), ("^",)), (years(), ())):
        assert divided(tokenizer, "a$3", "c$3", ("$",), ("0",)) == [
            (*start, "a", "$", "3"),
            (*start, "c", "$", "3"),
            (("$",),),
            (("0",),),
        ]
        assert divided(tokenizer, "a$", "c$", ("5",), ("0",))[0] == (*start, "a", "$")


def test_what_a_tokenizer_adds_is_found_whatever_the_texts_hold():
    for tokenizer, found in ((closing(years()), ("^", "$")), (years(), ("", ""))):
        for texts in (["^a$", "$"], ["13"]):
            assert tuple("".join(spell(tokenizer, ids)) for ids in added_tokens(tokenizer, texts)) == found


def test_special_tokens_can_be_left_out(embedded_tokenizer):
    pair = Pair(clean="Anna gave", corrupted="Emma gave", answers=(" Anna",), wrong_answers=(" Emma",))
    opened = tokenize_pairs([pair], embedded_tokenizer, 64)[0]
    plain = tokenize_pairs([pair], embedded_tokenizer, 64, special_tokens=False)[0]
    assert opened.clean == (embedded_tokenizer.bos_token_id, *plain.clean)
    assert opened.answers == plain.answers


def test_ids_need_no_tokenizer():
    pair = Pair(
        clean=(1, 2), corrupted=(3, 2), answers=((4,), (5, 6)), wrong_answers=((7,),), split="train", source="f:1"
    )
    example = tokenize_pairs([pair], None, 4, vocab_size=8)[0]
    assert example == (0, (1, 2), (3, 2), ((4,), (5, 6)), ((7,),), "f:1", -1) and not example.is_window


def test_answers_as_ids_after_text():
    """As in the EAP-IG files; a merge with the text is out of question."""
    tokenizer = years()
    ids = tokenizer.convert_tokens_to_ids(["00", "53"])
    assert divided(tokenizer, "a13", "c13", ((ids[0],),), ((ids[1],),)) == [
        ("a", "13"),
        ("c", "13"),
        (("00",),),
        (("53",),),
    ]


def test_ids_are_places_in_the_data_set(embedded_tokenizer):
    pairs = [
        Pair(clean=f"{a} gave", corrupted=f"{b} gave", answers=(f" {a}",), wrong_answers=(f" {b}",))
        for a, b in (("Anna", "Emma"), ("Lucy", "Jane"))
    ]
    assert [example.id for example in tokenize_pairs(pairs, embedded_tokenizer, 64)] == [0, 1]


def test_the_longest_continuation_counts():
    """But for its last token, which the model predicts and never reads."""
    pair = Pair(
        clean=(1, 2, 3), corrupted=(4, 2, 3), answers=((5,),), wrong_answers=((6, 7, 8),), split="", source="f:1"
    )
    assert tokenize_pairs([pair], None, 5)
    with pytest.raises(UserError, match="^f:1: .*more than 4; .*task.max_tokens"):
        tokenize_pairs([pair], None, 4)


def test_prompts_that_differ_only_before_tokenisation():
    raw = Tokenizer(models.WordLevel({"then": 0, "he": 1, "she": 2, "?": 3}, unk_token="?"))
    raw.normalizer, raw.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    with pytest.raises(UserError, match="^f:1: clean and corrupted prompt have the same tokens; change the corrupted"):
        tokenize_pairs(
            [Pair(clean="Then", corrupted="then", answers=(" he",), wrong_answers=(" she",), split="", source="f:1")],
            tokenizer,
            64,
        )


def test_an_answer_given_twice_is_refused():
    """Its probability would be counted twice."""
    with pytest.raises(UserError, match="^f:1: .*twice"):
        tokenize_pairs(
            [Pair(clean=(1,), corrupted=(2,), answers=((3,), (3,)), wrong_answers=((4,),), split="", source="f:1")],
            None,
            64,
        )


def test_pairs_that_contradict_each_other_are_refused():
    """With the same clean prompt and another corrupted one, or the same roles turned round."""
    first = Pair(clean=(1, 2), corrupted=(3, 2), answers=((5,),), wrong_answers=((6,),), source="f:1")
    agreeing = first._replace(corrupted=(4, 2), wrong_answers=((7,),), source="f:2")
    turned = first._replace(clean=(3, 2), corrupted=(1, 2), answers=((6,),), wrong_answers=((5,),), source="f:3")
    assert len(tokenize_pairs([first, agreeing, turned], None, 64)) == 3
    for answers, wrong, said in (
        (
            ((6,),),
            ((8,),),
            "what is an answer here is a wrong answer to the same prompt at f:1; remove one of the two pairs",
        ),
        (
            ((8,),),
            ((5,),),
            "what is a wrong answer here is an answer to the same prompt at f:1; remove one of the two pairs",
        ),
    ):
        other = first._replace(corrupted=(4, 2), answers=answers, wrong_answers=wrong, source="f:4")
        with pytest.raises(UserError) as caught:
            tokenize_pairs([first, agreeing, other], None, 64)
        assert str(caught.value) == f"f:4: {said}"
        left_out = []
        kept = tokenize_pairs([first, other, agreeing], None, 64, left_out=left_out)
        assert [example.source for example in kept] == ["f:1", "f:2"] and len(left_out) == 1


def test_ten_thousand_pairs_take_seconds(embedded_tokenizer):
    """Texts of 20 to 30 tokens, all different, with two answers each."""
    names = WOMEN[:10] + MEN[:10]
    people = itertools.permutations(names, 4)
    pairs = []
    for number, (one, other, third, fourth) in zip(range(10_000), people, strict=False):
        rest = f" and {third} met {fourth} at the {NOUNS[number % len(NOUNS)]}. After that {third} and {fourth} saw"
        pairs.append(
            Pair(
                clean=one + rest,
                corrupted=other + rest,
                answers=(f" {one}",),
                wrong_answers=(f" {other}",),
                split="",
                source=f"f:{number}",
            )
        )
    start = time.process_time()
    examples = tokenize_pairs(pairs, embedded_tokenizer, 128, vocab_size=len(embedded_tokenizer))
    assert len(examples) == 10_000
    assert time.process_time() - start < 20


few = st.lists(st.integers(0, 2), min_size=1, max_size=3).map(tuple)
some = st.lists(few, min_size=1, max_size=3, unique=True).map(tuple)


@settings(deadline=None, max_examples=300)
@given(some, some)
def test_answers_are_refused_exactly_when_one_begins_the_other(right, wrong):
    """Checked by trying every pair of them."""
    alike = any(r[: len(w)] == w or w[: len(r)] == r for r in right for w in wrong)
    try:
        tokenize_pairs(
            [Pair(clean=(7,), corrupted=(8,), answers=right, wrong_answers=wrong, split="", source="f:1")], None, 64
        )
        refused = False
    except UserError as error:
        assert str(error).startswith("f:1: ")
        refused = True
    assert refused == alike


REAL = ["babyllama105/pronoun_noun_name", "stories260k/name_copy_same_gender", "stories260k/object_induction"]


@pytest.mark.parametrize("name", REAL)
def test_real_pairs_keep_the_tokens_of_prompt_and_answer_together(shared, name):
    """Tokenised one text at a time here. The context never goes beyond the prompt's own tokens."""
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / name.split("/")[0])
    pairs = read_pairs(str(shared / "data/pairs" / f"{name}.jsonl"))
    for pair, example in zip(pairs, tokenize_pairs(pairs, tokenizer, 512), strict=True):
        assert len(example.clean) == len(example.corrupted)
        for prompt, context in ((pair.clean, example.clean), (pair.corrupted, example.corrupted)):
            assert tuple(tokenizer(prompt)["input_ids"])[: len(context)] == context
            for text, ids in zip(
                (*pair.answers, *pair.wrong_answers), (*example.answers, *example.wrong_answers), strict=True
            ):
                assert list(context + ids) == tokenizer(prompt + text)["input_ids"]


class _Refuses:
    """A tokenizer of another's, which raises on one text alone."""

    def __init__(self, text: str) -> None:
        self.text, self.own = text, load_tokenizer(ModelConfig())

    def __getattr__(self, name):
        return getattr(self.own, name)

    def __call__(self, texts, **settings):
        if any(self.text in text for text in ([texts] if isinstance(texts, str) else texts)):
            raise KeyError("no such piece")
        return self.own(texts, **settings)


def test_a_text_on_which_a_foreign_tokenizer_raises_is_a_line_that_names_its_row():
    prompts = ["one day", "two days", "six days"]
    pairs = [
        Pair(
            clean=f"{text} a",
            corrupted=f"{text} b",
            answers=(" x",),
            wrong_answers=(" y",),
            split="",
            source=f"f:{row}",
        )
        for row, text in enumerate(prompts, 1)
    ]
    with pytest.raises(
        UserError, match=r"^f:2: the model's tokenizer cannot read its texts \(KeyError: 'no such piece'\); reword"
    ):
        tokenize_pairs(pairs, _Refuses("two"), 64)
    left_out: list[str] = []
    found = tokenize_pairs(pairs, _Refuses("two"), 64, left_out=left_out)
    assert found == [one for one in tokenize_pairs(pairs, load_tokenizer(ModelConfig()), 64) if one.id != 1]
    assert len(left_out) == 1 and left_out[0].startswith("f:2: ")
