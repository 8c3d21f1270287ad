"""Check exports widely: every listed architecture in every format by its stock loader, and lm-evaluation-harness.

    python -m benchmarks.export_checks reload                   tiny random models of all listed architectures
    python -m benchmarks.export_checks harness MODEL PAIRS      a model folder, and a JSONL file of pairs (needs lm-eval)

`harness` scores base, exported model and masked model in memory on a multiple-choice task of the pairs: the log-likelihoods of
exported and masked model are compared one by one. Each part replaces its table in benchmarks/export_checks.md.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch

import bigcircuit
from benchmarks.export import SHARE, export, put, save_circuit
from bigcircuit.circuit.circuit import Circuit
from bigcircuit.config.schema import ModelConfig
from bigcircuit.errors import UserError
from bigcircuit.export.formats import EXPORT_FORMATS
from bigcircuit.export.verify import compare_outputs, random_prompts, run_fresh, run_masked
from bigcircuit.model.load import load_frozen, load_tokenizer
from tests.helpers.exports import fresh_run, request_of, saved_tiny, write_export
from tests.helpers.lm_eval_task import choice_task
from tests.helpers.tiny_models import TINY_CONFIGS


def reload() -> list[str]:
    """Export uneven circuits of tiny models under zero ablation, open all in one fresh process, and count those that are equal."""
    names = list(EXPORT_FORMATS)
    equal, refused, largest = dict.fromkeys(names, 0), dict.fromkeys(names, 0), dict.fromkeys(names, 0.0)
    with tempfile.TemporaryDirectory() as scratch:
        expected, runs = {}, {}
        for model, variants in sorted(TINY_CONFIGS.items()):
            resolved = saved_tiny(model, variants[0], Path(scratch) / model)
            frozen, request = load_frozen(resolved.config), request_of(resolved)
            prompts = random_prompts(resolved.hf_config)
            prompts = prompts._replace(ids=prompts.ids[:2, :16], prompt_tokens=8, new_tokens=8)
            expected[model] = run_masked(frozen, request, prompts)
            for name in names:
                output = Path(scratch) / f"{model}-{name}"
                try:
                    write_export(name, request, output)
                except UserError:
                    refused[name] += 1
                    continue
                runs[model, name] = fresh_run(EXPORT_FORMATS[name].loader, output, prompts)
        for (model, name), found in zip(runs, run_fresh(list(runs.values())), strict=True):
            compared = compare_outputs(expected[model], found.outputs)
            equal[name] += compared.is_equal and compared.same_tokens == compared.tokens
            largest[name] = max(largest[name], compared.largest_difference)
    rows = [
        f"| {name} | {equal[name]} | {refused[name]} | {len(TINY_CONFIGS) - equal[name] - refused[name]} | {largest[name]:.1g} |"
        for name in names
    ]
    return [
        f"Tiny random models of {len(TINY_CONFIGS)} model types, uneven circuits under zero ablation.",
        "",
        "| format | equal to 1e-5, and greedy text | refused with the reason | different | largest difference of a logit |",
        "|---|---|---|---|---|",
        *rows,
    ]


def harness(folder: Path, pairs: Path) -> list[str]:
    """Score base, export and masked model with lm-evaluation-harness."""
    config = ModelConfig(path=str(folder))
    base, tokenizer = load_frozen(config).model, load_tokenizer(config)
    lines = ["| model | accuracy | largest difference of a log-likelihood from the masked model |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        save_circuit(folder, scratch / "circuit.safetensors")
        (scratch / "config.yaml").write_text(json.dumps({"model": {"path": str(folder)}}))
        words = [str(scratch / "circuit.safetensors"), "--config", str(scratch / "config.yaml"), "--speed", "false"]
        found = {"base": _likelihoods(base, tokenizer, pairs, scratch)}
        for form in ("compact", "uniform", "zeroed"):
            export(scratch, *words, "--format", form, "--output", str(scratch / form))
            model = bigcircuit.load_exported(scratch / form, dtype=torch.float32)
            found[form] = _likelihoods(model, tokenizer, pairs, scratch)
        circuit = Circuit.load(scratch / "circuit.safetensors")
        with circuit.applied(base, ablation="zero") as masked:
            expected = _likelihoods(masked, tokenizer, pairs, scratch)
    lines.append(f"| masked, in memory | {_accuracy(expected):.3f} | |")
    for one, values in found.items():
        lines.append(f"| {one} | {_accuracy(values):.3f} | {float((values - expected).abs().max()):.1g} |")
    count = (
        f"{len(expected)} pairs of {folder.name}, {SHARE:.0%} of heads and MLP neurons kept at random, zero ablation."
    )
    return [count, "", *lines]


def _likelihoods(model: Any, tokenizer: Any, pairs: Path, scratch: Path) -> torch.Tensor:
    """Log-likelihoods of the right and the wrong answer of each pair, [pairs, 2], as the package computes them."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    text = [{"text": r["clean"], "choices": [_first(r["answers"]), _first(r["wrong_answers"])]} for r in rows]
    task = choice_task(text, scratch)
    run = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8)
    done = lm_eval.simple_evaluate(run, tasks=[task], log_samples=True, bootstrap_iters=0)["samples"]["pairs"]
    samples = sorted(done, key=lambda one: one["doc_id"])
    return torch.tensor([[float(likelihood) for ((likelihood, _),) in one["resps"]] for one in samples])


def _first(answers: Any) -> str:
    return answers if isinstance(answers, str) else answers[0]


def _accuracy(likelihoods: torch.Tensor) -> float:
    return float((likelihoods[:, 0] > likelihoods[:, 1]).float().mean())


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("reload", "harness"))
    parser.add_argument("files", nargs="*", type=Path)
    words = parser.parse_args()
    title = {"reload": "## Reload by the stock loader", "harness": "## lm-evaluation-harness"}[words.part]
    lines = reload() if words.part == "reload" else harness(*words.files)
    command = " ".join(["benchmarks.export_checks", words.part, *(path.name for path in words.files)])
    put(command, title, lines, Path(__file__).with_suffix(".md"), "Checks of exports")


if __name__ == "__main__":
    main()
