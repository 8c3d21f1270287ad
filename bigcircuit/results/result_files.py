"""Write and read evaluation.json and comparison.json, whose schema is the classes of evaluation.py and comparison.py."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bigcircuit.ablation.kinds import KINDS
from bigcircuit.errors import UserError
from bigcircuit.io.files import Json, read_json, write_json
from bigcircuit.model.granularity import EVERYWHERE, GRANULARITIES
from bigcircuit.results.comparison import Comparison
from bigcircuit.results.evaluation import COMPARISON, EVALUATION, Evaluation
from bigcircuit.results.shape import ExampleShape, InsideShape, check_shape, shape_of

_SCHEMAS = {EVALUATION: Evaluation, COMPARISON: Comparison}
_REMEDY = "evaluate or compare again"


def save_result(result: Evaluation | Comparison, path: Path) -> None:
    """Write an Evaluation or a Comparison atomically."""
    write_json(path, asdict(result))


def read_result(path: Path) -> dict[str, Any]:
    """Read evaluation.json or comparison.json. Raises UserError, naming the place, if the file is neither or is damaged."""
    content = read_json(path, _REMEDY)
    schema = _SCHEMAS.get(str(content.get("format"))) if isinstance(content, dict) else None
    if schema is None:
        raise UserError(f"{path}: not written by `bigcircuit evaluate` or `compare`")
    check_shape(content, shape_of(schema), str(path), _REMEDY)
    circuits = content["circuits"]
    if not circuits:
        raise UserError(f"{path}: has no circuits; {_REMEDY}")
    for counts in (content["nodes"], *(one["kept"] for one in circuits)):
        if missing := {"total", *EVERYWHERE} - counts.keys():
            raise UserError(f"{path}: counts no nodes of {min(missing)}; {_REMEDY}")
    if schema is Evaluation:
        _check_evaluation(content, path)
    else:
        _check_comparison(content, path)
    return content


def _check_evaluation(content: Json, path: Path) -> None:
    """Raise UserError for names that stand for nothing in the file or in this version; names of figures are made of them."""
    circuits, curves = content["circuits"], content["curves"]
    for number, one in enumerate(circuits):
        check_shape(one["examples"], list[ExampleShape], f"{path}: circuits.{number}.examples", _REMEDY)
    inside = content.get("inside", {})
    check_shape(inside, dict[str, InsideShape], f"{path}: inside", _REMEDY)
    for name, found in inside.items():
        if any(len(head["weights"]) != len(found["tokens"]) for head in found["heads"]):
            raise UserError(f"{path}: inside: {name!r:.60} has heads without a weight for each token; {_REMEDY}")
    under = [ablation for one in circuits for ablation in one["ablations"].items()]
    cells = [cell for found in content["cross"].values() for cell in found]
    drawn = [curve for found in curves.values() for curve in found]
    names = [one["name"] for one in circuits]
    used: Mapping[str, tuple[Sequence[str], Sequence[str]]] = {
        "ablation": ([*curves, *content["cross"], *(name for name, _ in under)], list(KINDS)),
        "level": ([one["level"] for one in drawn], [*GRANULARITIES, "neuron"]),
        "granularity": ([name for _, found in under for name in found["minimality"]], list(GRANULARITIES)),
        "task": ([one["task"] for one in (*circuits, *cells)], list(content["tasks"])),
        "circuit": ([*(cell["circuit"] for cell in cells), *(one["circuit"] or names[0] for one in drawn)], names),
    }
    for what, (given, known) in used.items():
        if unknown := sorted(set(given) - set(known)):
            raise UserError(f"{path}: names the {what} {unknown[0]!r:.60}, which is not known here; evaluate again")


def _check_comparison(content: Json, path: Path) -> None:
    """Raise UserError for an overlap that is not of all circuits of the file, or of other nodes than those of this version."""
    count, overlap, stability = len(content["circuits"]), content["overlap"], content["stability"]
    if unknown := sorted({*overlap, *stability, *content["frequency"]} - {*GRANULARITIES, "total"}):
        raise UserError(f"{path}: names the granularity {unknown[0]!r:.60}, which is not known here; compare again")
    if missing := sorted(
        ({"head", "total"} | overlap.keys()) - (overlap.keys() & stability.keys() & content["nodes"].keys())
    ):
        raise UserError(f"{path}: has no overlap of {missing[0]}; compare again")
    sizes = [[len(one["sizes"]) for one in overlap.values()]]
    sizes += [[len(one["matrix"]), *map(len, one["matrix"])] for one in stability.values()]
    if wrong := next((size for size in sum(sizes, []) if size != count), None):
        raise UserError(f"{path}: has {count} circuits, and overlaps of {wrong}; compare again")
