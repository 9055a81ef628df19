"""The model as an agent: which tools it is shown, and when its word is its last."""

from __future__ import annotations

from typing import Any

from common.llm.types import Capabilities, ModelReply, ToolMode
from common.task import Sampling
from common.trajectory import Action, Usage
from workers.policies.model import ModelPolicy
from workers.tools import FINISH, Tool, Toolbox, ToolOutput, parameters


class Model:
    """Says what it is told to."""

    provider, model, source = "test", "m", "api"

    def __init__(self, mode: ToolMode, text: str = "", **known: Any) -> None:
        self.capabilities = Capabilities(tool_mode=mode, **known)
        self._text = text

    async def complete(self, *_: Any, **__: Any) -> ModelReply:
        message = {"role": "assistant", "content": self._text}
        return ModelReply(
            message=message, text=self._text, thought="", calls=(), finish_reason="stop",
            parse="fenced", usage=Usage(),
        )  # fmt: skip

    async def check(self) -> str:
        return "ok"

    async def close(self) -> None:
        pass


def policy(model: Model, sampling: Sampling | None = None) -> ModelPolicy:
    return ModelPolicy(model, sampling or Sampling(), deadline=5, headers={})


def box(*names: str) -> Toolbox:
    text = {"type": "string"}
    tools = [Tool(name, name, parameters(["code"], code=text)) for name in names]
    return Toolbox.of(tools, first=(), only=False)


def program(code: str) -> Action:
    return Action(tool="run_python", arguments={"code": code}, call_id="1")


def test_a_fenced_model_sees_programs_only_and_falls_back_to_schema_without_any() -> None:
    fenced = policy(Model("fenced", few_shot=True))
    shown = fenced.show(box("run_python", "run_shell", "read_file"))
    assert [t.name for t in shown.tools] == ["run_python", "run_shell", FINISH]
    assert (fenced.mode, fenced.examples(shown)) == ("fenced", [])

    elsewhere = policy(Model("fenced", few_shot=True))
    shown = elsewhere.show(box("tap", "swipe"))
    assert [t.name for t in shown.tools] == ["tap", "swipe", FINISH]
    assert elsewhere.mode == "schema"
    assert [m["role"] for m in elsewhere.examples(shown)] == ["user", "assistant"] * 2


def test_a_fenced_program_that_runs_or_is_repeated_after_an_error_is_the_last_word() -> None:
    bad, good = ToolOutput("boom", success=False), ToolOutput("42\n")
    fenced = policy(Model("fenced"))
    assert fenced.concludes(program("a"), bad) is None
    assert fenced.concludes(program("b"), bad) is None
    assert fenced.concludes(program("b"), bad) == "boom"
    assert policy(Model("fenced")).concludes(program("a"), good) == "42"
    assert policy(Model("native")).concludes(program("a"), good) is None


async def test_text_without_a_call_is_an_answer_in_fenced_mode_and_a_slip_in_the_others() -> None:
    turn = await policy(Model("fenced", "It is 42.")).act([], box("run_python"), deadline=5)
    assert [(a.tool, a.arguments) for a in turn.actions] == [(FINISH, {"answer": "It is 42."})]
    turn = await policy(Model("native", "It is 42.")).act([], box("run_python"), deadline=5)
    assert turn.actions == ()
    assert "calls no tool" in (turn.objection or "")


def test_what_we_send_by_default_is_recorded_and_the_task_wins() -> None:
    model = Model("native", extra_body={"temperature": 0, "max_tokens": 400, "thinking": "no"})
    assert policy(model).agent.sampling == Sampling(temperature=0, max_tokens=400)
    said = policy(model, Sampling(temperature=0.7, seed=3)).agent.sampling
    assert said == Sampling(temperature=0.7, max_tokens=400, seed=3)
