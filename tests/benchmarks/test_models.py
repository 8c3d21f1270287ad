"""One model type of each kind keeps all invariants, and the page about models names what the tables hold."""

from pathlib import Path

import pytest

from benchmarks.models import FAMILIES, REFUSES, TYPES, WORKS, build_tiny, examine
from bigcircuit.errors import UserError
from bigcircuit.model.architectures import ARCHITECTURES, REFUSED
from bigcircuit.model.sites import find_sites

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
ONE_OF_A_KIND = """
    bloom mpt gpt_bigcode openai-gpt gemma4_text minicpm3 qwen3_moe gpt_oss llama4_text zaya deepseek_v3 hy_v4 falcon_h1 zamba
    nemotron_h qwen3_next lfm2_moe mamba bart bert
""".split()
"""Biases of several shapes, all rows, inputs for each layer, latent attention, experts of several forms, state that crosses layers,
mixers beside attention, modules that layers share, layers of one site, recurrent models, decoders."""


@pytest.mark.parametrize("name", ONE_OF_A_KIND)
def test_invariants(name):
    outcome = examine(name)
    assert outcome.result == WORKS, outcome


def test_every_kind_is_in_the_sample():
    assert {ARCHITECTURES[name].kind for name in ONE_OF_A_KIND} >= {
        row.kind for row in ARCHITECTURES.values() if row.kind not in ("dense", "hybrid, mixture of experts")
    } - {"decoder of an encoder-decoder"}


@pytest.mark.parametrize("name", ["jetmoe", "dbrx", "longcat_flash", "rwkv", "blt"])
def test_refused_by_kind(name):
    assert examine(name)[:3] == (REFUSES, REFUSED[name], "by its config")


def test_an_encoder_is_refused_before_it_is_loaded():
    with pytest.raises(UserError, match="'bert' is an encoder, in which a token sees later ones"):
        find_sites(build_tiny("bert", is_decoder=False))


def test_the_page_names_every_type_of_the_tables():
    text = PAGE.read_text(encoding="utf-8")
    missing = [name for name in {*ARCHITECTURES, *REFUSED} & {*TYPES} if f"`{name}`" not in text]
    assert not missing, "run python -m benchmarks.models --output docs/models.md"
    assert all(f"| {family} |" in text for family in FAMILIES)
    assert "FAILS" not in text


def test_a_type_is_in_one_table():
    assert not ARCHITECTURES.keys() & REFUSED.keys()
