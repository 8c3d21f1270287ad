"""Sections of a config about sizes: penalties and targets by granularity, and what suits an export."""

from typing import Annotated, Any, Literal, cast

from pydantic import ConfigDict, Field, create_model

from bigcircuit.config.section import Section
from bigcircuit.config.values import Size
from bigcircuit.model.granularity import GRANULARITIES, NODE_NAMES

Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Described(Section):
    """Base of sections whose fields bring their descriptions: pydantic need not search for docstrings, which takes time."""

    model_config = ConfigDict(use_attribute_docstrings=False)


def _by_granularity(kind: Any, default: Any, **more: str) -> type[Section]:
    """Base of a section with a field for every granularity, and some more with these descriptions, which come first."""
    texts = {**more, **{name: NODE_NAMES[name] for name in GRANULARITIES}}
    fields = {name: (kind, Field(default, description=f"{text[0].upper()}{text[1:]}.")) for name, text in texts.items()}
    return cast(Any, create_model)("ByGranularity", __base__=_Described, **fields)


class PenaltyConfig(_by_granularity(Weight, 0.0)):  # type: ignore[misc]
    """Weight of the expected open fraction of each granularity in the loss."""


_TOTAL = "site neurons (attention and MLP neurons together): how many to keep, or a share such as 0.1"


class TargetConfig(_by_granularity(Size, None, total=_TOTAL)):  # type: ignore[misc]
    """Sizes to reach: nodes kept (200), or a share of those of the model (0.1 or 10%). A targeted granularity's fixed penalty is
    off; with `total` all of them are."""

    parameters: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None,
        description="Share of the parameters of the layers that the circuit keeps at most, in place of `total`: counted as exports "
        "count them, with gate projections, keys and values.",
    )
    per_layer: Literal["free", "uniform"] = Field(
        "free",
        description="`uniform`: every kept block keeps as many key/value groups, query heads in each group and MLP neurons, whole "
        "heads, so that `export --format uniform` cuts without padding. Sizes are then met from below where they do not divide.",
    )
    multiple_of: Annotated[int, Field(ge=1)] = Field(
        1, description="MLP neurons of every layer are a multiple of this (64 suits GPUs)."
    )

    def sizes(self) -> dict[str, int]:
        """The targets that are set; in the config of a member of a resolved run shares are numbers of nodes.

        A share of the parameters stands in for `total`, as that share of the site neurons; gates are weighed in parameters then.
        """
        found = {name: size for name, size in self if size is not None and name in NODE_NAMES}
        return found if self.parameters is None else {"total": self.parameters} | found

    def layout(self) -> dict[str, Any]:
        """The settings beside sizes that are set."""
        named = {"parameters": None, "per_layer": "free", "multiple_of": 1}
        return {name: value for name, default in named.items() if (value := getattr(self, name)) != default}
