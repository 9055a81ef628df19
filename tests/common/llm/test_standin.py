"""The stand-in itself, as a process of its own and with each kind of script."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from common.llm.client import connect
from common.settings import load
from common.task import Sampling
from tests.common.llm.conftest import TOOLS, asked
from tests.standin import Script, Standin
from tests.standin.faults import plan

SCRIPT = {
    "known": {
        "turns": [{"tool": "run_python", "arguments": {"code": "print(1)"}}, {"text": "Done."}],
        "faults": {"1": "429:0.01"},
    },
    "*": {
        "reference": {
            "actions": [{"tool": "run_python", "arguments": {"code": "print(6*7)"}}],
            "answer": "42",
        }
    },
}


async def test_it_runs_as_a_process_and_tells_tasks_apart(tmp_path: Path, repo: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps(SCRIPT))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.standin", "--script", str(script),
        cwd=repo, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(30):
        url = json.loads(await process.stdout.readline())["url"]
        settings = load(llm_provider="custom", llm_base_url=url, llm_model="m")
        (model,) = connect(settings)
        known = await model.complete(
            asked("?"), TOOLS, Sampling(), deadline=20, headers={"x-fleet-task": "known"}
        )
        assert known.calls[0].arguments == {"code": "print(1)"}
        assert known.source == "standin"
        chat = asked("other")
        for expected in ({"code": "print(6*7)"}, {"answer": "42"}):
            reply = await model.complete(chat, TOOLS, Sampling(), deadline=20)
            assert reply.calls[0].arguments == expected
            chat = [*chat, reply.message]
        await model.close()
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


async def test_a_turn_beyond_the_script_is_refused_by_name(standin: Standin) -> None:
    standin.script = Script({"t": {"turns": [{"text": "Hello."}]}})
    settings = load(llm_provider="custom", llm_base_url=standin.url, llm_model="m")
    (model,) = connect(settings)
    said = {"role": "assistant", "content": "Hello."}
    with pytest.raises(Exception, match="no turn 2"):
        await model.complete(asked("t", said), TOOLS, Sampling(), deadline=20)
    with pytest.raises(Exception, match="no script for task 'u'"):
        await model.complete(asked("u"), TOOLS, Sampling(), deadline=20)
    await model.close()


def test_mistakes_in_a_script_are_errors() -> None:
    with pytest.raises(ValueError, match="turnz"):
        Script({"t": {"turnz": []}})
    with pytest.raises(ValueError, match="unknown fault"):
        plan("418")
