"""Base of all sections of a config."""

from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator
from pydantic_core import PydanticCustomError

from bigcircuit.config.plain import value_problem


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused, texts and numbers such as files and float32 can hold."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if problem := value_problem(value):
            raise PydanticCustomError("not_plain", "{problem}", {"problem": problem})
        return value
