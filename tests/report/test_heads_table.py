"""The table of kept heads."""

import pytest
import torch

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.report.heads_table import heads_table


def circuit_of(*kept):
    """A circuit of a model of two layers of two heads of three neurons, keeping attention neurons (layer, number)."""
    attention, mlp = torch.zeros(2, 6).bool(), torch.zeros(2, 4).bool()
    for place in kept:
        attention[place] = True
    masks = {"attention_neuron": attention, "mlp_neuron": mlp, "head": attention.view(2, 2, 3).any(2)}
    return Circuit(masks, {}, {})


def evaluation(group, *rises):
    """evaluation.json with a rise of KL for every (layer, head, mean)."""
    dropped = [
        {"layer": layer, "nodes": [head], "kl_change": {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}}
        for layer, head, mean in rises
    ]
    under = {"zero": {"minimality": {"head": {"group": group, "dropped": dropped}}}}
    return {"circuits": [{"name": "c", "ablations": under}]}


def cells(table):
    return {column.heading: [cell.text for cell in column.cells] for column in table.columns}


def test_heads_of_one_circuit_are_ordered_by_what_closing_them_costs():
    found = heads_table(
        {"a": circuit_of((0, 0), (0, 4), (0, 5), (1, 0))}, [evaluation(1, (0, 0, 0.2), (0, 1, 0.7), (1, 0, 0.3))]
    )
    assert found.names == ["L0H1", "L1H0", "L0H0"] and found.places == [1, 2, 0]
    assert cells(found) == {
        "neurons kept": ["2 of 3", "1 of 3", "1 of 3"],
        "KL rises by, nats": ["0.700", "0.300", "0.200"],
    }
    assert found.columns[1].cells[0].small == "0.600 to 0.800" and "zero ablation" in found.measured


def test_heads_of_several_circuits_are_ordered_by_how_many_keep_them():
    found = heads_table({"a": circuit_of((0, 0), (1, 3)), "b": circuit_of((1, 3), (1, 4)), "c": circuit_of((1, 4))}, [])
    assert found.names == ["L1H1", "L0H0"]
    assert cells(found) == {"neurons kept": ["1 to 2 of 3", "1 of 3"], "kept by": ["3 of 3", "1 of 3"]}


@pytest.mark.parametrize("circuits, evaluations", [({"a": circuit_of()}, []), ({"a": circuit_of()}, [evaluation(1)])])
def test_without_a_kept_head_there_is_no_table(circuits, evaluations):
    assert heads_table(circuits, evaluations) is None


def test_groups_of_heads_are_no_single_heads():
    found = heads_table({"a": circuit_of((0, 0))}, [evaluation(2, (0, 0, 0.2))])
    assert found.grouped and not found.measured and list(cells(found)) == ["neurons kept"]
