"""What is said of contracts that are refused, and how they look as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import settings
from pydantic import BaseModel, ValidationError

from common.model import explain

few = settings(max_examples=60, deadline=None)


def problems(model: type[BaseModel], value: object) -> list[tuple[str, str]]:
    """What is said of a value that is refused."""
    with pytest.raises(ValidationError) as refused:
        model.model_validate(value)
    return explain(refused.value)


def as_json(model: BaseModel) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(model.model_dump_json(by_alias=True))
    return value
