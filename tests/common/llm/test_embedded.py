"""The embedded model for real: weights, server, client, and a program it wrote."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from common.failures import ConfigurationError
from common.llm import fetch
from common.llm.client import connect
from common.llm.types import ChatModel
from common.llm.weights import DEFAULT, SMOLLM2
from common.settings import load
from common.task import Sampling
from tests.common.llm.conftest import FINISH, RUN_PYTHON
from tests.helpers import eventually

SYSTEM = (
    "You solve a task by writing a program. Reply with one fenced code block that starts with "
    "```python. It is run, and you are shown what it printed."
)


@pytest.fixture(scope="module")
def weights() -> Path:
    """Verified weights: what is cached, else the small ones, fetched now."""
    pytest.importorskip("xllamacpp", reason="the extra 'embedded' is not installed")
    cache = load().cache
    for one in DEFAULT:
        if path := fetch._cached(cache / "models", one):
            return path
    try:
        return fetch.ensure(cache, (SMOLLM2,))[1]
    except ConfigurationError as error:
        print(f"SKIP embedded: {error}")
        pytest.skip(f"no weights for the embedded model can be had: {error}")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def model(weights: Path, repo_root: Path) -> AsyncIterator[ChatModel]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "common.llm.embedded", "--model-file", str(weights),
        cwd=repo_root, stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "FLEET_EMBEDDED_KEY": "key-for-this-test"},
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(60):
        line = json.loads(await process.stdout.readline())
    assert line["key_env"] == "FLEET_EMBEDDED_KEY"
    assert "key" not in line
    (chat,) = connect(
        load(
            llm_provider="embedded", embedded_url=line["url"], llm_model=line["model"],
            embedded_key="key-for-this-test",
        )
    )  # fmt: skip
    yield chat
    await chat.close()
    process.terminate()
    async with asyncio.timeout(20):
        assert await process.wait() == 0


@pytest.fixture(scope="module")
def repo_root() -> Path:
    return Path(__file__).parents[3]


@pytest.mark.embedded
@pytest.mark.asyncio(loop_scope="module")
async def test_the_embedded_model_writes_a_program(model: ChatModel) -> None:
    chat = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": "Print the numbers from 1 to 5, one per line."},
    ]
    reply = await model.complete(
        chat, [RUN_PYTHON, FINISH], Sampling(temperature=0, max_tokens=200), deadline=120
    )
    assert reply.source == "embedded"
    assert reply.model == model.model
    assert reply.parse == "fenced"
    assert reply.usage.completion_tokens > 0
    assert reply.usage.cost_usd == 0
    assert not reply.usage.estimated
    (call,) = reply.calls
    assert call.tool == "run_python"
    assert "print" in str(call.arguments["code"])


@pytest.mark.embedded
@pytest.mark.asyncio(loop_scope="module")
async def test_the_embedded_model_is_held_to_a_schema_where_there_is_no_code(
    model: ChatModel,
) -> None:
    search = {
        "type": "function",
        "function": {
            "name": "web_search",
            "description": "Search the web.",
            "parameters": {
                "type": "object",
                "properties": {"query": {"type": "string", "maxLength": 60}},
                "required": ["query"],
                "additionalProperties": False,
            },
        },
    }
    chat = [
        {"role": "system", "content": "Answer with one JSON object: thought, tool, arguments."},
        {"role": "user", "content": "Search the web for the capital of France."},
    ]
    reply = await model.complete(
        chat, [search, FINISH], Sampling(temperature=0, max_tokens=300), deadline=120
    )
    assert reply.parse == "schema"
    assert len(reply.calls) == 1
    assert reply.calls[0].tool in ("web_search", "finish")


@pytest.mark.embedded
@pytest.mark.asyncio(loop_scope="module")
async def test_check_proves_the_embedded_model(model: ChatModel) -> None:
    assert "answered in" in await model.check()


def test_a_file_that_is_no_model_is_a_clear_error(tmp_path: Path, repo_root: Path) -> None:
    text = tmp_path / "text.gguf"
    text.write_text("hello")
    for path, says in ((tmp_path / "gone.gguf", "No such file"), (text, "is no GGUF file")):
        ended = subprocess.run(
            [sys.executable, "-m", "common.llm.embedded", "--model-file", str(path)],
            cwd=repo_root, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert ended.returncode == 2
        assert says in ended.stderr
        assert ended.stdout == ""


_PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-m", "common.llm.embedded", "--model-file", sys.argv[1]],
                         stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
sys.stdin.readline()
"""


@pytest.mark.embedded
async def test_the_embedded_model_ends_with_who_started_it(weights: Path, repo_root: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(weights)],
        cwd=repo_root, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert _is_alive(child)
        parent.kill()
    await eventually(lambda: not _is_alive(child), "the model's process ends")


def _is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
