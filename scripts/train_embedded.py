"""Train the embedded model: `python -m scripts.train_embedded --output FOLDER` (about 15 minutes on one core).

Writes a folder in transformers format with the training log and the model card. The same seed on the same library versions
gives the same model; other versions or machines reproduce the behaviours, not the bytes.
"""

import argparse
import json
import logging
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from bigcircuit.data.builders import BUILDERS
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.data.pair import Example
from bigcircuit.data.tokenize import tokenize_pairs
from bigcircuit.io.files import write_bytes, write_json
from bigcircuit.metrics.logit_metrics import contrast
from scripts.embedded_corpus import BEHAVIOURS, Document, documents, held_out

log = logging.getLogger(__name__)

BOS = "<s>"
ANSWER_WEIGHT = 4.0
"""Weight of an answer's tokens in the loss. Other tokens, which cannot be predicted in random sentences, have weight 1."""


def train_tokenizer(seed: int, texts: int = 20_000) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer in which digits come in pairs and every word of the corpus is one token.

    texts: number of documents to train on.
    """
    tokenizer = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r" ?\d{1,2}"), behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = ByteLevelDecoder()
    stream = documents(random.Random(seed))
    trainer = trainers.BpeTrainer(
        vocab_size=1400,
        special_tokens=[BOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((next(stream).text for _ in range(texts)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, model_max_length=128)


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Build a Llama with grouped-query attention and random weights, about 0.9M parameters."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        max_position_embeddings=128,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=None,
        pad_token_id=None,
        initializer_range=0.04,
    )
    return LlamaForCausalLM(config)


def make_batch(tokenizer: Any, chosen: list[Document]) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokenise documents. Returns token ids [B, T], padded on the right with BOS, and each token's weight in the loss, [B, T]."""
    encoded = tokenizer([d.text for d in chosen], return_offsets_mapping=True)
    width = max(map(len, encoded["input_ids"]))
    ids = torch.full((len(chosen), width), tokenizer.bos_token_id)
    weights = torch.zeros(len(chosen), width)
    for row, (document, tokens, spans) in enumerate(
        zip(chosen, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        begin = len(document.text) - document.answer
        weights[row, : len(tokens)] = torch.tensor([ANSWER_WEIGHT if span[0] >= begin else 1.0 for span in spans])
    weights[:, 0] = 0
    return ids, weights


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Compute the weighted mean cross-entropy of the next token, in nats. ids, weights: [B, T]."""
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def held_out_examples(tokenizer: Any, size: int, seed: int = 1) -> dict[str, list[Example]]:
    """Return for each behaviour the examples that training excludes: about a tenth of the `size` pairs from its builder."""
    examples = {}
    for name in BEHAVIOURS:
        pairs = BUILDERS[name](tokenizer, size, random.Random(seed))
        examples[name] = tokenize_pairs(
            [pair for pair in pairs if held_out(str(pair.clean))], tokenizer, max_tokens=128
        )
    return examples


@torch.no_grad()
def accuracy(model: LlamaForCausalLM, examples: Sequence[Example], corrupted: bool = False) -> float:
    """Compute the share of clean prompts on which the right answers are more probable than the wrong answers.

    corrupted: compute the share of corrupted prompts on which the wrong answers are more probable, which is expected where the
    corrupted prompt swaps the answers.
    """
    solved = []
    for micro_batch in MicroBatches(64).iterate(examples, full=True):
        batch = micro_batch.batch
        ids = batch.corrupted if corrupted else batch.clean
        logits = model(input_ids=ids, attention_mask=batch.attention_mask, use_cache=False).logits
        difference = contrast(logits[None, batch.score_row, batch.score_position], batch).logit_difference[0]
        solved.append(difference < 0 if corrupted else difference > 0)
    return torch.cat(solved).float().mean().item()


def train(output: Path, steps: int, batch_size: int, seed: int, evaluate_every: int, prompts: int) -> dict[str, float]:
    """Train the tokenizer and the model and write the folder. Returns the held-out accuracy of each behaviour."""
    tokenizer = train_tokenizer(seed)
    model = new_model(tokenizer, seed)
    examples = held_out_examples(tokenizer, prompts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.05)
    stream = documents(random.Random(seed + 1))
    rows, losses, scores, start = [], [], {}, time.monotonic()
    for step in range(1, steps + 1):
        loss = loss_of(model, *make_batch(tokenizer, [next(stream) for _ in range(batch_size)]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % evaluate_every == 0 or step == steps:
            scores = {name: accuracy(model, chosen) for name, chosen in examples.items()}
            seconds = round(time.monotonic() - start, 1)
            rows.append({"step": step, "loss": sum(losses) / len(losses), "seconds": seconds, **scores})
            losses.clear()
            log.info("%s", rows[-1])
    settings = {"steps": steps, "batch_size": batch_size, "seed": seed, "seconds": rows[-1]["seconds"]}
    write(output, model, tokenizer, rows, card(model, tokenizer, examples, settings))
    return scores


def write(output: Path, model: LlamaForCausalLM, tokenizer: Any, rows: list[dict], text: str) -> None:
    """Save model, tokenizer, training log and card; an older folder is changed only once all files are ready."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        described = Path(folder) / "tokenizer_config.json"
        # The class name that every version of transformers has; version 5 writes a new name.
        write_json(described, {**json.loads(described.read_text()), "tokenizer_class": "PreTrainedTokenizerFast"})
        (Path(folder) / "training_log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (Path(folder) / "README.md").write_text(text)
        for file in sorted(Path(folder).iterdir()):
            write_bytes(output / file.name, file.read_bytes())


def card(
    model: LlamaForCausalLM, tokenizer: Any, examples: Mapping[str, Sequence[Example]], settings: Mapping[str, float]
) -> str:
    """Write the model card, with the accuracies of this model."""
    lines = []
    for name, chosen in examples.items():
        # The corrupted period begins in year 01 and may end in any year, so the corrupted prompt does not swap the answers.
        swapped = "-" if name == "greater_than" else f"{accuracy(model, chosen, corrupted=True):.4f}"
        lines.append(f"| {name} | {len(chosen)} | {accuracy(model, chosen):.4f} | {swapped} |")
    size = {"parameters": model.num_parameters(), "vocabulary": len(tokenizer)}
    return CARD.format(table="\n".join(lines), **size, **settings)


CARD = """# The embedded model

A Llama with grouped-query attention (4 layers, width 128, 8 query and 4 key/value heads, MLP width 320, tied embeddings,
{parameters:,} parameters, float32) and a byte-level BPE tokenizer of {vocabulary} tokens with digits in pairs. It exists so that
bigcircuit works offline on a fresh machine. It speaks only the synthetic English of `scripts/embedded_corpus.py`.

Trained by `python -m scripts.train_embedded` with steps {steps}, batch {batch_size}, seed {seed}, in {seconds:.0f} seconds on
one CPU thread; `training_log.jsonl` has the loss (mean since the line before, weighted, in nats) and the held-out accuracies.

## What it can do

A prompt is held out of training when the first byte of its sha256 is divisible by ten (`held_out` in
`scripts/embedded_corpus.py`), a tenth of all prompts; only whole prompts are held out, their words are all known. The
table counts held-out prompts of the task builders. Clean: the share on which the right answers together are more probable than
the wrong ones. Corrupted: the share of their corrupted prompts on which the wrong answer is the more probable one.

| behaviour | prompts | clean | corrupted |
|---|---|---|---|
{table}

Weights and training data are synthetic: lists of words and sentence frames in this repository, and nothing else.

Licence: that of this project.
"""


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=4000, help="updates")
    parser.add_argument("--batch-size", type=int, default=48, help="documents per update")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and corpus")
    parser.add_argument("--evaluate-every", type=int, default=500, help="steps between two evaluations")
    parser.add_argument("--prompts", type=int, default=3000, help="prompts per behaviour to draw held-out ones from")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # sums over several threads depend on their number
    train(**vars(arguments))


if __name__ == "__main__":
    main()
