"""A turn that asks for the wrong thing, or for many things: what is run, and what is said back."""

from __future__ import annotations

import pytest

from common.failures import FailureKind
from common.trajectory import Action, StopReason, Usage
from tests.workers.episodes import Run, Script, World, call, finish, gibberish, says
from workers.episode import MAX_MALFORMED
from workers.tools import ToolOutput

# -- malformed answers ----------------------------------------------------------------------------


async def test_three_malformed_answers_are_shown_back_and_the_fourth_ends_it(run: Run) -> None:
    world = World()
    script = Script(*[gibberish(f"wrong {n}") for n in range(1, 9)])
    got = await run(script, world)
    assert len(script.shown) == MAX_MALFORMED + 1 == 4
    for n in (1, 2, 3):
        assert script.shown[n][-1] == {
            "role": "user",
            "content": f"Your answer could not be used: wrong {n}",
        }
    assert (got.stop_reason, got.malformed_answers) == (StopReason.FAILURE, 4)
    assert got.failure.kind is FailureKind.MODEL_ERROR
    assert "wrong 4" in got.failure.message
    assert world.verified == [("", 0)], "an agent's failure is a verified one"
    assert got.success is True


async def test_a_valid_call_resets_the_count(run: Run) -> None:
    bad = [gibberish()] * 3
    got = await run(Script(*bad, says(call()), *bad, says(finish("x"))), max_steps=20)
    assert (got.stop_reason, got.final_result) == (StopReason.FINISH, "x")
    assert (got.malformed_answers, len(got.steps)) == (6, 2)


async def test_malformed_answers_use_up_steps_too(run: Run) -> None:
    script = Script(gibberish(), says(call()), gibberish(), gibberish())
    got = await run(script, max_steps=3)
    assert (got.stop_reason, got.malformed_answers, len(got.steps)) == (StopReason.MAX_STEPS, 2, 1)


@pytest.mark.parametrize(
    ("action", "reason"),
    [
        (call("browser"), "there is no tool 'browser'; the tools are: run, look, finish"),
        (Action(tool="run", arguments={}, call_id="c1"), "'code' is a required property"),
        (call(code=5), "code: 5 is not of type 'string'"),
        (call(surprise=1), "('surprise' was unexpected)"),
        (call("look", deep={"a": 1}), "bad arguments for look"),
        (Action(tool="finish", arguments={"answer": [1]}, call_id="c1"), "answer: [1] is not"),
    ],
)
async def test_a_call_that_cannot_be_run_is_shown_back_with_the_reason(
    run: Run, action: Action, reason: str
) -> None:
    world = World()
    script = Script(says(call("look", _id="c0"), action), says(finish()))
    got = await run(script, world)
    assert world.called == [], "nothing of a turn runs when one call in it is wrong"
    told = script.shown[1][3:]
    assert [m["tool_call_id"] for m in told] == ["c0", "c1"], "every call has its result"
    assert {m["role"] for m in told} == {"tool"}
    assert all(reason in m["content"] for m in told)
    assert (got.malformed_answers, len(got.steps)) == (1, 1)


async def test_a_complaint_about_a_call_written_as_text_comes_as_text(run: Run) -> None:
    script = Script(says(call("browser"), native=False), says(finish()))
    await run(script)
    assert script.shown[1][-1]["role"] == "user"
    assert "there is no tool 'browser'" in script.shown[1][-1]["content"]


# -- several calls in a turn ----------------------------------------------------------------------


async def test_the_calls_of_a_turn_run_in_order_and_none_after_one_that_failed(run: Run) -> None:
    world = World([ToolOutput("one"), ToolOutput("bad", success=False, exit_code=1)])
    turn = says(
        call(_id="a"), call(_id="b"), call(_id="c"), finish(_id="d"),
        thought="all at once", usage=Usage(calls=1),
    )  # fmt: skip
    script = Script(turn, says(finish("later")))
    got = await run(script, world)
    assert len(world.called) == 2
    assert [s.success for s in got.steps] == [True, False, False, False, True]
    assert [s.exit_code for s in got.steps] == [None, 1, None, None, None]
    assert [s.thought for s in got.steps] == ["all at once", "", "", "", ""]
    assert [s.usage.calls for s in got.steps] == [1, 0, 0, 0, 0]
    assert [(m["tool_call_id"], m["content"]) for m in script.shown[1][3:]] == [
        ("a", "one"), ("b", "bad"),
        ("c", "not run: the call before it failed"), ("d", "not run: the call before it failed"),
    ]  # fmt: skip
    assert (got.stop_reason, got.final_result) == (StopReason.FINISH, "later")


async def test_calls_beyond_the_last_step_are_not_run_and_told_so(run: Run) -> None:
    world = World()
    got = await run(Script(says(*[call(_id=f"c{n}") for n in range(4)])), world, max_steps=2)
    assert got.stop_reason is StopReason.MAX_STEPS
    assert len(world.called) == 2
    assert [s.success for s in got.steps] == [True, True, False, False]
    for step in got.steps[2:]:
        assert step.observation.text == "not run: no steps are left"


async def test_a_finish_after_a_good_call_ends_it_in_the_same_turn(run: Run) -> None:
    got = await run(Script(says(call(_id="a"), finish("x", _id="b"), call(_id="c"))))
    assert (got.stop_reason, got.final_result) == (StopReason.FINISH, "x")
    assert [s.action_type for s in got.steps] == ["run", "finish"]
