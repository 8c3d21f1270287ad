"""Every format of every listed architecture: opened by its stock loader in a fresh process, the export is the masked model."""

import json
from pathlib import Path

import pytest
import torch

from bigcircuit.ablation.ablation import ZERO
from bigcircuit.errors import UserError
from bigcircuit.export.formats import EXPORT_FORMATS
from bigcircuit.export.verify import Prompts, compare_outputs, random_prompts, run_fresh, run_masked
from bigcircuit.model.load import load_frozen
from tests.helpers.exports import fresh_run, random_constants, request_of, saved_tiny, write_export
from tests.helpers.tiny_models import TINY_CONFIGS

FOLDERS = [name for name, known in EXPORT_FORMATS.items() if known.loader != "gguf"]
CASES = [
    (model, variant, ablation, name)
    for model, variants in sorted(TINY_CONFIGS.items())
    for variant in range(len(variants))
    for name in FOLDERS
    for ablation in (("zero",) if variant else ("zero", "mean"))
]
WITH_BIAS = set("gpt2 gpt_neo gpt_neox granite llama nemotron opt phi seed_oss smollm3 starcoder2".split())
"""Model types whose stock class has, or can have, a bias behind both output projections."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Expected and found outputs of every case, or the reason for which it is refused; one fresh process opens all exports."""
    folder, refused, expected, runs = tmp_path_factory.mktemp("exports"), {}, {}, {}
    for model, variants in sorted(TINY_CONFIGS.items()):
        for variant, settings in enumerate(variants):
            resolved = saved_tiny(model, settings, folder / f"{model}-{variant}")
            frozen = load_frozen(resolved.config)
            prompts = random_prompts(resolved.hf_config)._replace(new_tokens=6)
            prompts = prompts._replace(ids=prompts.ids[:2, :12], prompt_tokens=8)
            for ablation, value in (("zero", ZERO), ("mean", random_constants(resolved.shapes))):
                request = request_of(resolved, value)
                outputs = run_masked(frozen, request, prompts)
                for name in FOLDERS if (model, variant, ablation, FOLDERS[0]) in CASES else ():
                    case = (model, variant, ablation, name)
                    output = folder / "-".join(map(str, case))
                    try:
                        write_export(name, request, output)
                    except UserError as error:
                        refused[case] = str(error)
                        continue
                    expected[case] = outputs
                    runs[case] = fresh_run(EXPORT_FORMATS[name].loader, output, prompts)
    found = dict(zip(runs, run_fresh(list(runs.values())), strict=True))
    return {"refused": refused, "expected": expected, "found": found, "folder": folder}


@pytest.mark.parametrize(("model", "variant", "ablation", "name"), CASES)
def test_an_export_is_the_masked_model(exported, model, variant, ablation, name):
    case = (model, variant, ablation, name)
    if ablation == "mean" and (name == "ia3" or (name in ("zeroed", "uniform") and model not in WITH_BIAS)):
        assert "closed nodes output constants under mean ablation" in exported["refused"][case]
        return
    compared = compare_outputs(exported["expected"][case], exported["found"][case].outputs)
    assert compared.is_equal, compared
    assert compared.same_tokens == compared.tokens == 12


@pytest.mark.parametrize("model", sorted(TINY_CONFIGS))
def test_compact_is_smaller_than_uniform_and_uniform_than_zeroed(exported, model):
    sizes = [
        (exported["folder"] / f"{model}-0-zero-{name}" / "model.safetensors").stat().st_size
        for name in ("compact", "uniform", "zeroed")
    ]
    assert sizes[0] < sizes[1] < sizes[2], sizes


@pytest.mark.parametrize("model", sorted(TINY_CONFIGS))
def test_no_config_has_settings_that_transformers_ignores(exported, model):
    for name in ("uniform", "zeroed", "compact"):
        config = json.loads((exported["folder"] / f"{model}-0-zero-{name}" / "config.json").read_text())
        assert "per_layer_config" not in config and "skip" not in config
        assert config["dtype"] == "float32"


def test_an_export_that_is_not_the_masked_model_is_told(exported):
    case = ("llama", 0, "zero", "compact")
    outputs = {name: value.clone() for name, value in exported["found"][case].outputs.items()}
    outputs["logits"][0, 3, 5] += 1e-3
    outputs["text"][1, 2:] += 1
    compared = compare_outputs(exported["expected"][case], outputs)
    assert not compared.is_equal and compared.same_tokens == 6 + 2
    outputs["logits"][0, 3, 5] = torch.nan
    assert not compare_outputs(exported["expected"][case], outputs).is_equal


def test_a_folder_that_cannot_be_opened_is_one_line(exported, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_bytes(Path(exported["folder"] / "llama-0" / "config.json").read_bytes())
    with pytest.raises(UserError, match=r"broken: a fresh process could not open the export \(OSError"):
        run_fresh([fresh_run("transformers", broken, Prompts(torch.tensor([[1, 2]]), 1, 1))])
