"""Shapes of the JSON files of runs and sweeps, and the check that a file has its shape before a page is made of it."""

import json
import types
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BaseModel, Field, TypeAdapter, ValidationError, create_model

from bigcircuit.circuit.validate import ScoreShape
from bigcircuit.config.choices import OneOf
from bigcircuit.errors import UserError
from bigcircuit.io.files import read_json
from bigcircuit.model.granularity import EVERYWHERE, GRANULARITIES

_NodeName = Annotated[str, OneOf(["total", *GRANULARITIES])]


def _has_all(counts: dict[str, int]) -> dict[str, int]:
    missing = {"total", *EVERYWHERE} - counts.keys()
    if missing:
        raise ValueError(f"it has no {min(missing)}")
    return counts


_Counts = Annotated[dict[_NodeName, Annotated[int, Field(ge=0)]], AfterValidator(_has_all)]
_Scores = dict[str, ScoreShape]


class _Member(BaseModel):
    member: int | str
    circuit: str
    kept: _Counts
    scores: _Scores
    seed: int | str = ""
    best_step: int | str = ""
    targets: dict[_NodeName, int] = {}
    penalties: dict[_NodeName, float] = {}
    parameters_kept: float | None = None
    parameters: dict[str, int] = {}


class Summary(BaseModel):
    """summary.json of a run."""

    model: str
    task: str
    pairs: dict[str, int]
    left_out: dict[str, int]
    nodes: _Counts
    full: _Scores
    empty: _Scores
    members: Annotated[list[_Member], Field(min_length=1)]
    seconds: float | None = None
    peak_memory_bytes: int | None = None


class _Token(BaseModel):
    token: str
    probability: float | None
    right: bool


class ExampleShape(BaseModel):
    """Predictions on one held-out pair, in examples.json and in evaluation.json."""

    prompt: str
    corrupted: str
    answers: list[str]
    full: list[_Token]
    circuit: list[_Token]
    complement: list[_Token]


class Examples(BaseModel):
    """examples.json of a run."""

    members: list[list[ExampleShape]]


class _Head(BaseModel):
    name: str
    weights: list[float | None]


class _Neuron(BaseModel):
    name: str
    raises: list[str]
    lowers: list[str]


class InsideShape(BaseModel):
    """What the most needed nodes of a circuit do, see evaluation/inside.py."""

    tokens: list[str]
    heads: list[_Head]
    neurons: list[_Neuron]


class _Population(BaseModel):
    members: list[dict[str, Any]] = []
    seeds: int = 1


class _Train(BaseModel):
    steps: int
    batch_size: int


class _Config(BaseModel):
    """What pages read of a config, which may be of another version."""

    model: dict[str, Any] = {}
    task: dict[str, Any] = {}
    ablation: dict[str, Any] = {}
    gates: dict[str, Any] = {}
    penalty: dict[str, float] = {}
    target: dict[str, Any] = {}
    train: _Train | None = None
    population: _Population = _Population()


class Setup(BaseModel):
    """config.json of a run."""

    config: _Config
    command: list[str]
    versions: dict[str, str]


class SweepSetup(Setup):
    """sweep.json of a sweep."""

    sweep: dict[str, Any]


class Trial(BaseModel):
    """trial.json of a trial."""

    number: int
    drawn: dict[str, Any]
    settings: dict[str, Any]
    status: Annotated[str, OneOf(["waiting", "running", "finished", "stopped", "failed"])] = "waiting"
    error: str | None = None
    step: int = 0
    steps: int = 0
    seconds: float = 0.0
    updates: int = 0
    at_stake: int = 0
    validation: dict[str, float | None] | None = None
    let_on: int = 0
    lost: bool = False


def read_shaped(path: Path, remedy: str, shape: type[BaseModel]) -> Any:
    """Read a JSON file of a shape as plain data. Raises UserError naming the file, the place in it and the remedy."""
    content = read_json(path, remedy)
    check_shape(content, shape, f"{path}", remedy)
    return content


def check_shape(content: Any, shape: Any, source: str, remedy: str) -> None:
    """Raises UserError, naming `source`, the place and the remedy, unless plain data have a shape."""
    try:
        TypeAdapter(shape).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        place = ".".join(str(part)[:60] for part in problem["loc"])
        raise UserError(f"{source}: {place or 'it'}: {problem['msg'].lower()}; {remedy}") from error


@cache
def shape_of(kind: Any) -> Any:
    """Return the shape in which `write_json` writes values of a type: a dataclass as an object, and NaN as null.

    kind: a dataclass, or an annotation of one of its fields. A field may be missing that has a default or was added later.
    """
    if kind is float:
        return float | None
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        made: dict[str, Any] = {}
        for one in fields(kind):
            has_default = one.default is not MISSING or one.default_factory is not MISSING
            made[one.name] = shape_of(hints[one.name]), None if has_default or "added_later" in one.metadata else ...
        return create_model(getattr(kind, "__name__", "shape"), **made)
    origin: Any = get_origin(kind)
    inner = list(map(shape_of, get_args(kind)))
    if origin in (Union, types.UnionType):
        return reduce(or_, inner)
    return origin[tuple(inner)] if origin in (list, dict) else kind
