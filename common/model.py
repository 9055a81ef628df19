"""The base of every contract: frozen, and strict about keys nobody declared."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator


class Contract(BaseModel):
    """Immutable data with named fields; an unknown key is an error that names it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class Written(Contract):
    """A contract with computed fields: they are written for readers of the JSON and recomputed,
    never trusted, on reading."""

    @model_validator(mode="before")
    @classmethod
    def _drop_computed(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        computed = {field.alias or name for name, field in cls.model_computed_fields.items()}
        return {key: value for key, value in data.items() if key not in computed}


def explain(error: ValidationError) -> list[tuple[str, str]]:
    """Return ``(field, reason)`` for each thing pydantic found wrong, in words for a person."""
    found = []
    for item in error.errors(include_url=False, include_input=False):
        field = ".".join(str(part) for part in item["loc"]) or "(line)"
        reason = "unknown field" if item["type"] == "extra_forbidden" else item["msg"]
        found.append((field, reason.removeprefix("Value error, ")))
    return found
