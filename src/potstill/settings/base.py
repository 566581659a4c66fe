"""Limits of settings, and the base class of their tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from potstill.errors import PotstillError, together
from potstill.fields import brief, is_flag_for_number

# The largest values: far above any use, and below what overflows or does not fit in memory.
MOST_STEPS = 10**7
MOST_PROMPTS = 10**5  # of a step
MOST_TOKENS = 10**6  # of a completion; windows of models are below it
MOST_PROBLEMS = 10**9
MOST_SAMPLES = 10**4  # of a problem
MOST_ROWS = 10**9  # tokens of a micro-batch
MOST_RANK = 2**14  # a LoRA rank above a model's width adds nothing
MOST_DOLLARS = 10**9
MOST_SEED = 2**53 - 1  # exact in JSON, which browsers read as floats
SLOWEST = 1e-12  # learning rate; below, no weight changes
HOT, COLD = 1e3, 1e-3  # temperatures: above, sampling is uniform; below, greedy or not finite


class Table(BaseModel):
    """A table of the study file: closed to unknown keys, never changed once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_flags(cls, table: Any) -> Any:
        """Pydantic takes true for 1."""
        fields = cls.model_fields
        flags = [
            PotstillError(f"{key} is a number, got {brief(value)}", "write a number")
            for key, value in (table.items() if isinstance(table, Mapping) else ())
            if key in fields and is_flag_for_number(value, fields[key].annotation)
        ]
        if flags:
            raise together(flags)
        return table

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """A copy with other values of some fields, checked like the first."""
        return type(self).model_validate({**self.model_dump(), **changes}) if changes else self


Modules = Annotated[
    Annotated[str, Field(min_length=1)] | tuple[Annotated[str, Field(min_length=1)], ...],
    Field(min_length=1),
]


def _trains(norm: float) -> float:
    if 0 < norm < 1e-6:
        raise ValueError("input should be 0, which is off, or at least 1e-6: less trains nothing")
    return norm


Norm = Annotated[float, Field(ge=0), AfterValidator(_trains)]
