"""Reports of short real runs that several test files check, and functions that read them."""

from pathlib import Path
from typing import NamedTuple

from bigcircuit.circuit.circuit import Circuit
from bigcircuit.distributed.ranks import Ranks
from bigcircuit.evaluation.config import EvaluationSettings
from bigcircuit.evaluation.evaluate import evaluate_circuits
from bigcircuit.io.run_dir import RunDir
from bigcircuit.report.render import write_report
from tests.helpers.short_runs import run


class Reported(NamedTuple):
    """Run folders and files of three pages."""

    one: RunDir
    """One circuit, evaluated."""
    many: RunDir
    """A population of three sizes."""
    pair: Path
    """The comparison of two of its members."""
    pair_files: list[Path]


def make_reports(base: Path) -> Reported:
    """Prune, evaluate and write the pages, below `base`."""
    one = run(base / "one", task__size=40, train__steps=6)
    settings = EvaluationSettings(
        draws=4, groups=4, fractions=(0.5,), partial_draws=1, ablations=("interchange", "zero")
    )
    evaluate_circuits([str(one.path)], settings, Ranks())
    sizes = [{"target.total": size} for size in (300, 150, 220)]
    many = run(base / "many", task__size=40, train__steps=6, population__members=sizes)
    pair = [many.path / f"circuits/{index}.safetensors" for index in (0, 1)]
    write_report([str(path) for path in pair], base / "pair.html")
    return Reported(one, many, base / "pair.html", pair)


def circuit_of(path):
    """Read the masks of a circuit file."""
    return Circuit.load(path).masks


def listed(page, layer, inside=".circuit.on"):
    """Open a layer and read the lists of neurons that the page makes from its images: what -> [text of each category]."""
    details = page.locator(f"{inside} details.layer[data-layer='{layer}']")
    details.locator("summary").first.click()
    boxes = details.locator(".inside > div").all()
    details.locator("details.list").nth(len(boxes) - 1).wait_for()
    return [box.locator("details.list p").all_text_contents() for box in boxes]


def expected(masks, layer):
    """Name the kept neurons of a layer as the page does, from the masks of the circuit file."""
    dimensions = masks["attention_neuron"].shape[1] // masks["head"].shape[1]
    attention = masks["attention_neuron"][layer].nonzero().flatten().tolist()
    return [
        [f"{n // dimensions}.{n % dimensions}" for n in attention],
        [str(n) for n in masks["mlp_neuron"][layer].nonzero().flatten().tolist()],
    ]
