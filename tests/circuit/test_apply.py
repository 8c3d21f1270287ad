"""A circuit on a model object: what fits is checked, and the numbers are those of an evaluation."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, pipeline

from bigcircuit.ablation.ablation import Ablation
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.load import load
from bigcircuit.data.dataset import load_task
from bigcircuit.data.micro_batches import MicroBatches
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.errors import UserError
from bigcircuit.forward.streams import Streams
from bigcircuit.metrics.distinct_circuits import mask_source
from bigcircuit.metrics.score import score
from bigcircuit.model.weight_files import EMBEDDED
from tests.helpers.lm_eval_task import choice_task
from tests.helpers.tiny_models import TINY, tiny_model

PROMPT = "When Mary and John went to the store, John gave a drink to"


@pytest.fixture(scope="module")
def circuit(finished_run):
    return Circuit.load(finished_run.path)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(EMBEDDED)


@pytest.fixture(scope="module")
def task(embedded):
    frozen, tokenizer = embedded
    return load_task(load(None, {"task.size": 40}).task, tokenizer, frozen.model.config)


@pytest.mark.parametrize("ablation", ["interchange", "zero"])
def test_logits_are_those_that_evaluate_scores(embedded, circuit, model, task, ablation):
    frozen, micro_batches = embedded[0], MicroBatches.of(load(None), Ranks())
    micro_batch = next(iter(micro_batches.iterate(task.splits["test"][:8], full=True)))
    batch = micro_batch.batch
    with torch.no_grad(), Streams(frozen, Ablation(ablation)) as streams:
        wanted = streams.masked(batch, mask_source([circuit.masks], streams), 1)[0]
    corrupted = batch.corrupted if ablation == "interchange" else None
    with torch.no_grad(), circuit.applied(model, corrupted_ids=corrupted, ablation=ablation) as masked:
        logits = masked(batch.clean, attention_mask=batch.attention_mask, position_ids=batch.position_ids).logits
    assert torch.equal(logits[batch.score_row, batch.score_position], wanted)


def test_the_model_is_yielded_and_its_own_again_afterwards(circuit, model, embedded):
    ids = embedded[1](PROMPT, return_tensors="pt")
    before = model(**ids).logits
    with circuit.applied(model, ablation="zero") as masked:
        assert masked is model
        assert not torch.equal(masked(**ids).logits, before)
    assert torch.equal(model(**ids).logits, before)


def test_a_pipeline_writes_what_generate_does(circuit, model, embedded):
    tokenizer = embedded[1]
    with circuit.applied(model, ablation="zero") as masked:
        written = pipeline("text-generation", masked, tokenizer=tokenizer)(
            [PROMPT], max_new_tokens=6, do_sample=False, return_tensors=True
        )
        wanted = masked.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=6, do_sample=False)
    assert written[0][0]["generated_token_ids"] == wanted[0].tolist()


def test_a_model_with_an_adapter_of_peft_is_masked_too(circuit, embedded):
    from peft import LoraConfig, get_peft_model

    ids = embedded[1](PROMPT, return_tensors="pt")
    plain, adapted = (AutoModelForCausalLM.from_pretrained(EMBEDDED) for _ in range(2))
    adapted = get_peft_model(adapted, LoraConfig(r=2, target_modules=["o_proj"]))
    with pytest.raises(UserError, match="the model has one"), circuit.applied(adapted, ablation="zero"):
        pass
    with (
        circuit.applied(adapted, ablation="zero", any_model=True) as masked,
        circuit.applied(plain, ablation="zero") as whole,
    ):
        assert torch.equal(masked(**ids).logits, whole(**ids).logits)  # a new LoRA adds nothing
        assert torch.equal(masked.generate(**ids, max_new_tokens=3), whole.generate(**ids, max_new_tokens=3))


def test_other_models_are_refused_in_one_line(circuit, tmp_path):
    def enter(given, **how):
        with circuit.applied(given, ablation="zero", **how):
            pass

    with pytest.raises(UserError, match="mask has .* nodes in 4 layers and the model .* in 3; give the model"):
        enter(tiny_model("llama", TINY).model)
    with pytest.raises(UserError, match="a Linear is not a Hugging Face causal language model"):
        enter(nn.Linear(2, 2))
    with torch.device("meta"), pytest.raises(UserError, match="has no weights"):
        enter(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(EMBEDDED)), any_model=True)
    other = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    with torch.no_grad():
        other.lm_head.weight.add_(1)
    other.save_pretrained(tmp_path / "other")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="found in embedded, whose (weights|config) hash is .* any_model=True"):
        enter(other)
    enter(other, any_model=True)


@pytest.mark.parametrize(
    "how, message",
    [
        ({}, "interchange ablation needs the corrupted prompts"),
        ({"ablation": "zero", "corrupted_ids": [[1, 2]]}, "zero ablation runs no corrupted prompts"),
        ({"ablation": "mean"}, "mean ablation needs constants, which the circuit does not hold"),
        ({"ablation": "typo"}, "ablation typo is not known"),
    ],
)
def test_an_ablation_without_what_it_needs_is_refused(circuit, model, how, message):
    with pytest.raises(UserError, match=message), circuit.applied(model, **how):
        pass


def test_given_constants_are_what_closed_nodes_output(circuit, model, task, embedded):
    """Means that a run measures by itself and constants that are given: one number."""
    from bigcircuit.forward.activation_means import moments

    micro_batches = MicroBatches.of(load(None), Ranks())
    found = moments(embedded[0], task.splits["train"], micro_batches, per_position=False, prompts="corrupted")
    ablation = found.ablation("mean")
    with Streams(embedded[0], ablation) as streams:
        wanted = score(streams, task.splits["test"][:1], [circuit.masks], micro_batches)["kl"]
    example = task.splits["test"][0]
    ids = torch.tensor([example.clean])
    given = circuit.under(ablation)
    with torch.no_grad():
        full = model(ids).logits[0, -1].log_softmax(-1)
        with given.applied(model) as masked:
            kept = masked(ids).logits[0, -1].log_softmax(-1)
    assert len(example.answers[0]) == 1
    torch.testing.assert_close((full.exp() * (full - kept)).sum(), wanted[0, 0], atol=1e-4, rtol=1e-3)


def test_lm_evaluation_harness_scores_the_circuit(circuit, model, embedded, task, tmp_path):
    """The real package, on a multiple-choice task of pairs: its log-likelihoods are those of the circuit's own logits."""
    lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install lm-eval==0.4.13)")
    from lm_eval.models.huggingface import HFLM

    tokenizer, pairs = embedded[1], [task.pairs[example.id] for example in task.splits["test"][:6]]
    rows = [{"text": pair.clean, "choices": [pair.answers[0], pair.wrong_answers[0]]} for pair in pairs]
    local = choice_task(rows, tmp_path)
    with circuit.applied(model, ablation="zero") as masked:
        harness = HFLM(pretrained=masked, tokenizer=tokenizer, batch_size=4, add_bos_token=False)
        found = lm_eval.simple_evaluate(harness, tasks=[local], log_samples=True, bootstrap_iters=0)["samples"]["pairs"]
        for row, sample in zip(rows, sorted(found, key=lambda one: one["doc_id"]), strict=True):
            prompt = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
            for choice, ((likelihood, _),) in zip(row["choices"], sample["resps"], strict=True):
                ids = tokenizer(row["text"] + choice, add_special_tokens=False)["input_ids"]
                with torch.no_grad():
                    logs = masked(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
                wanted = logs.gather(1, torch.tensor(ids[len(prompt) :]).unsqueeze(1)).sum()
                assert float(likelihood) == pytest.approx(float(wanted), abs=1e-3)
