"""The embedded model: what it is, what it can do on prompts it never saw, and that its script makes such a folder."""

import json
import random
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from bigcircuit.data.builders import BUILDERS, gendered_pronoun, greater_than, ioi
from bigcircuit.data.builders.words import EVENTS, MEN, NOUNS, OBJECTS, PLACES, WOMEN
from bigcircuit.data.pair import Pair
from bigcircuit.model.load import EMBEDDED as PATH
from scripts.embedded_corpus import BEHAVIOURS, documents, held_out
from scripts.train_embedded import loss_of, make_batch, train

SIZES = {"ioi": 1500, "greater_than": 600, "gendered_pronoun": 480, "induction": 1500}
"""Prompts asked of the builders; a tenth of them is held out."""


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(PATH)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(PATH).eval()


def pairs_of(name: str, tokenizer) -> list[Pair]:
    """Held-out pairs, drawn with another seed than the training script's."""
    pairs = BUILDERS[name](tokenizer, SIZES[name], random.Random(77))
    return [pair for pair in pairs if held_out(pair.clean)]


@torch.no_grad()
def right_more_probable(model, tokenizer, pair: Pair, prompt: str) -> bool:
    """Plain softmax after the prompt: mass on the right answers' tokens against mass on the wrong ones'."""
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    probability = model(ids).logits[0, -1].softmax(-1)
    right, wrong = ([tokenizer(prompt + answer)["input_ids"][-1] for answer in group] for group in pair[2:4])
    return bool(probability[right].sum() > probability[wrong].sum())


@pytest.mark.parametrize("name", BEHAVIOURS)
def test_every_behaviour_is_solved_on_held_out_prompts(model, tokenizer, name):
    pairs = pairs_of(name, tokenizer)
    assert len(pairs) >= 30
    solved = [right_more_probable(model, tokenizer, pair, pair.clean) for pair in pairs]
    assert sum(solved) / len(solved) > 0.99


@pytest.mark.parametrize("name", ["ioi", "gendered_pronoun", "induction"])
def test_corrupted_prompts_make_the_wrong_answer_more_probable(model, tokenizer, name):
    pairs = pairs_of(name, tokenizer)
    swapped = [not right_more_probable(model, tokenizer, pair, pair.corrupted) for pair in pairs]
    assert sum(swapped) / len(swapped) > 0.97


@torch.no_grad()
def test_late_years_gain_as_the_period_begins_later(model, tokenizer):
    """The mass that the model puts on the years above 50 grows with the year in which the period began."""
    frame = greater_than.FRAME.format
    prompts = [frame(event="war", century=15, year=f"{year:02d}") for year in (10, 30, 50)]
    probability = model(**tokenizer(prompts, return_tensors="pt")).logits[:, -1].softmax(-1)
    late = [tokenizer(f" 15{year:02d}")["input_ids"][-1] for year in range(51, 100)]
    mass = probability[:, late].sum(-1)
    assert mass[0] < mass[1] < mass[2] and mass[2] > 0.9


def test_it_is_a_small_llama_with_grouped_queries(model):
    config = model.config
    assert isinstance(model, LlamaForCausalLM)
    assert config.num_attention_heads > config.num_key_value_heads > 1
    assert config.tie_word_embeddings
    assert sum(file.stat().st_size for file in PATH.iterdir()) <= 4 * 2**20


def test_the_folder_is_complete_and_tells_no_path_of_a_machine():
    texts = {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training_log.jsonl",
        "README.md",
    }
    assert {file.name for file in PATH.iterdir()} == texts | {"model.safetensors"}
    assert not any("/home" in (PATH / name).read_text() or "/tmp" in (PATH / name).read_text() for name in texts)


def test_log_and_card_tell_the_accuracies():
    rows = [json.loads(line) for line in (PATH / "training_log.jsonl").read_text().splitlines()]
    assert len(rows) >= 5
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(rows[-1][name] > 0.99 for name in BEHAVIOURS)
    card = (PATH / "README.md").read_text()
    assert all(f"| {name} |" in card for name in BEHAVIOURS)
    assert f"steps {rows[-1]['step']}" in card


def test_every_word_of_the_lists_is_one_token(tokenizer):
    for word in WOMEN + MEN + PLACES + OBJECTS + NOUNS + EVENTS:
        assert len(tokenizer.tokenize(f" {word}")) == 1, word


def test_years_are_two_tokens(tokenizer):
    assert tokenizer.tokenize("year 1732")[-2:] == ["Ġ17", "32"]


@pytest.mark.parametrize(
    "text",
    [
        "When Mary and John went to the store, John gave a drink to",
        "It's 1732!  two  spaces",
        "naïve 数学 🙂\n\tx = 12345",
    ],
)
def test_text_survives_the_tokenizer(tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in ids[1:]
    assert tokenizer.eos_token_id is None
    assert tokenizer.decode(ids[1:]) == text


def test_the_corpus_holds_no_held_out_prompt(tokenizer):
    texts = [document.text for document in islice(documents(random.Random(0)), 60_000)]
    pairs = BUILDERS["gendered_pronoun"](tokenizer, 10_000, random.Random(0))
    prompts = {pair.clean for pair in pairs}
    met = {text.rpartition(" ")[0] for text in texts} & prompts
    assert not any(map(held_out, met))
    assert len(met) > 0.95 * sum(not held_out(prompt) for prompt in prompts)  # so that absence says something
    years = {text[:-2] for text in texts if " lasted from " in text}
    assert years and not any(map(held_out, years))


def test_the_corpus_speaks_in_the_frames_of_the_tasks():
    texts = [document.text for document in islice(documents(random.Random(1)), 3000)]
    for frame in (*ioi.FRAMES, *gendered_pronoun.FRAMES):
        ending = frame[frame.rindex("}") + 1 :]
        assert any(ending in text for text in texts), frame


def test_the_loss_weighs_answers_and_ignores_padding(model, tokenizer):
    chosen = list(islice(documents(random.Random(2)), 8))
    chosen.sort(key=lambda document: len(document.text))
    ids, weights = make_batch(tokenizer, chosen)
    lengths = [len(tokenizer(document.text)["input_ids"]) for document in chosen]
    for row, document in enumerate(chosen):
        assert not weights[row, 0] and not weights[row, lengths[row] :].any()
        heavy = ids[row, weights[row] > 1].tolist()
        assert tokenizer.decode(heavy) == document.text[len(document.text) - document.answer :]
    with torch.no_grad():
        log_p = model(ids).logits.log_softmax(-1)
        total = sum(
            -weights[b, t] * log_p[b, t - 1, ids[b, t]] for b in range(len(chosen)) for t in range(1, lengths[b])
        )
        torch.testing.assert_close(loss_of(model, ids, weights), total / weights.sum())


@pytest.fixture(scope="module")
def short_training(tmp_path_factory):
    """A folder after 40 updates."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    train(folder, steps=40, batch_size=16, seed=0, evaluate_every=10, prompts=60)
    return folder


def test_a_short_training_lowers_the_loss_and_writes_the_folder(short_training):
    assert {file.name for file in short_training.iterdir()} == {file.name for file in PATH.iterdir()}
    rows = [json.loads(line) for line in (short_training / "training_log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert rows[-1]["loss"] < rows[0]["loss"] - 1
    assert all(0 <= row[name] <= 1 for row in rows for name in BEHAVIOURS)
    assert "steps 40, batch 16, seed 0" in (short_training / "README.md").read_text()
    assert isinstance(AutoModelForCausalLM.from_pretrained(short_training), LlamaForCausalLM)


def test_the_script_makes_the_tokenizer_and_config_that_are_shipped(short_training):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (short_training / name).read_text() == (PATH / name).read_text()
    made, shipped = (json.loads((folder / "config.json").read_text()) for folder in (short_training, PATH))
    made.pop("transformers_version"), shipped.pop("transformers_version")
    assert made == shipped
