"""A sample of short runs finds what the record in this folder says: to the bit on the machine that made it, nearly so elsewhere.

Where a change of results is meant: `python -m benchmarks.bit_identity sample --output tests/benchmarks/bit_identity.json`.
"""

import json
from pathlib import Path

import pytest

from benchmarks.bit_identity import sample

RECORD = json.loads(Path(__file__).with_name("bit_identity.json").read_text())


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The sample as this machine finds it."""
    return sample(tmp_path_factory.mktemp("sample"))


def kept_neurons(masks):
    """Places of ones in masks as the record has them: granularity -> hexadecimal number of each layer."""
    return {
        (name, layer, neuron)
        for name, rows in masks.items()
        for layer, row in enumerate(rows)
        for neuron in range(4 * len(row))
        if int(row, 16) >> neuron & 1
    }


def test_the_record_is_of_circuits_that_keep_a_part(found):
    assert found["cases"].keys() == RECORD["cases"].keys()
    for name, case in RECORD["cases"].items():
        assert len(kept_neurons(case["masks"])) == case["kept"]["total"]
        assert 0 < case["kept"]["total"] < 1792, name


@pytest.mark.parametrize("name", RECORD["cases"])
def test_results_are_those_of_the_record(found, name):
    recorded, now = RECORD["cases"][name], found["cases"][name]
    if found["machine"] == RECORD["machine"]:
        assert now == recorded, "the same build of torch on the same processor gives the same bits"
    ours, theirs = kept_neurons(now["masks"]), kept_neurons(recorded["masks"])
    assert len(ours & theirs) > 0.98 * len(ours | theirs)
    assert now["kept"] == pytest.approx(recorded["kept"], rel=0.02)
    assert now.get("scores", {}) == pytest.approx(recorded.get("scores", {}), rel=1e-3, abs=1e-4)
