"""The base of all recipes: groups of typed settings that detect impossible combinations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError


@dataclass(frozen=True)
class Remark:
    """One remark about a setting: its dotted path, what is wrong, and how to fix it."""

    path: str
    message: str
    remedy: str

    def __str__(self) -> str:
        """Return the remark as one line."""
        return f"{self.path}: {self.message}. {self.remedy}."


def refuse(remarks: Iterable[Remark]) -> None:
    """Report all remarks as errors of the validation in progress."""
    errors = [
        InitErrorDetails(type=PydanticCustomError("impossible", "{remark}", {"remark": remark}), input=None)
        for remark in remarks
    ]
    if errors:
        raise ValidationError.from_exception_data("recipe", errors)


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 < bounds[0] <= bounds[1]:
        raise PydanticCustomError("range", "must have 0 < least <= greatest")
    return bounds


Positive = Annotated[float, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[tuple[float, float], AfterValidator(_rising)]
AreaRange = Annotated[tuple[Probability, Probability], AfterValidator(_rising)]


def _as_tuple(values: Any) -> Any:
    # Strict validation takes lists for tuples only in JSON, which `model_validator(mode="before")` turns into objects.
    return tuple(values) if isinstance(values, list) else values


Channel = Annotated[int, Field(ge=0, le=255)]
Color = Annotated[tuple[Channel, Channel, Channel], BeforeValidator(_as_tuple)]


class Section(BaseModel):
    """A group of settings. Unknown keys are errors; values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def impossible(self) -> Iterator[Remark]:
        """Yield combinations of these settings that cannot work."""
        return iter(())

    @model_validator(mode="after")
    def _refuse_impossible(self) -> Self:
        refuse(self.impossible())
        return self
