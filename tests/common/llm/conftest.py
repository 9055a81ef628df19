"""A stand-in provider, and models that talk to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic import SecretStr

from common.llm.client import OpenAIChat
from common.llm.http import Pool
from common.llm.pacing import Backoff
from common.llm.providers import ProviderConfig, ProviderRecord
from common.llm.types import CallRecord, Capabilities
from tests.standin import Standin

KEY = "sk-test-0123456789abcdef"
FAST = Backoff(base=0.01, longest=0.05)

RUN_PYTHON = {
    "type": "function",
    "function": {
        "name": "run_python",
        "description": "Run a program.",
        "parameters": {
            "type": "object",
            "properties": {"code": {"type": "string"}},
            "required": ["code"],
            "additionalProperties": False,
        },
    },
}
FINISH = {
    "type": "function",
    "function": {
        "name": "finish",
        "description": "End the task.",
        "parameters": {
            "type": "object",
            "properties": {"answer": {"type": "string"}},
            "additionalProperties": False,
        },
    },
}
TOOLS = [RUN_PYTHON, FINISH]

Connect = Callable[..., OpenAIChat]


def config(url: str | None, **fields: Any) -> ProviderConfig:
    capabilities = fields.pop("capabilities", Capabilities(tool_mode="native"))
    record = ProviderRecord(key="llm_api_key", defaults=capabilities)
    values = {
        "name": "custom", "base_url": url, "api_key": SecretStr(KEY), "model": "some-model",
        "record": record, "source": "api", "concurrency": 64, "rate_limit_budget": 20.0,
    }  # fmt: skip
    return ProviderConfig(**{**values, **fields})


def asked(task: str = "t", *more: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": f"Do it. [[task:{task}]]"}, *more]


@pytest.fixture
async def standin() -> AsyncIterator[Standin]:
    async with Standin() as server:
        yield server


@pytest.fixture
async def connect(standin: Standin) -> AsyncIterator[Connect]:
    """Make models of the stand-in; their call records are in `model.records`."""
    pool = Pool().share()

    def make(backoff: Backoff = FAST, **fields: Any) -> OpenAIChat:
        records: list[CallRecord] = []
        model = OpenAIChat(
            config(standin.url, **fields), pool=pool, backoff=backoff, observe=records.append
        )
        model.records = records  # type: ignore[attr-defined]
        return model

    yield make
    await pool.release()
