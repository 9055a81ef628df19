"""What gives an answer away: the answer, in whatever spelling; and nothing that is everywhere."""

from __future__ import annotations

from typing import Any

import pytest

from common.task import Task
from reviewer.hidden import gives_away
from tests.reviewer.endings import judged


def hidden(**check: Any) -> Task:
    return judged(checks=[check])


NUMBER = hidden(type="answer", expected="4815162342")
ROW = hidden(type="stdout", expected="1\n2\n3\n5\n")
DATA = hidden(
    type="file", path="o.json", match="json", expected='{"city": "Lisbon", "total": 1234}'
)


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("It is 4,815,162,342.", NUMBER),
        ("It is 4 815 162 342.", NUMBER),
        ("It is ４８１５１６２３４２.", NUMBER),
        ("It is 481\u200b5162\u200b342.", NUMBER),
        ("About 4,815,162,342!", hidden(type="answer", expected=4815162342.0, match="numeric")),
        ("Is it 12,345?", hidden(type="answer", expected=12345.0)),
        ("Try 365.0 days", hidden(type="answer", expected="365")),
        ("the answer is lisbon.", hidden(type="answer", expected="Lisbon")),
        ("say red first", hidden(type="answer", expected=["red", "no"], match="set")),
        ("Roughly 3.14", hidden(type="stdout", expected="3.14\n")),
        ("答案是上海市。", hidden(type="answer", expected="上海市")),
        ("print 1, 2, 3, 5", ROW),
        ("print 1-2-3-5", ROW),
        ('Write {"total": 1234, "city": "Lisbon"}', DATA),
        ("Write {'total':1234,\n 'city':'Lisbon'}", DATA),
        ("print SECRET-123456", hidden(type="command", run='test "$(./a)" = SECRET-123456')),
        ("print SECRET-123456", hidden(type="stdout", expected="x", run="./a SECRET-123456")),
        ("write /work/out/rest.bin", hidden(type="file", path="out/rest.bin")),
        ("name it hidden_case.py", hidden(type="command", run="x", files={"hidden_case.py": ""})),
    ],
)
def test_an_answer_is_known_in_another_spelling(text: str, task: Task) -> None:
    assert gives_away([text], task)
    assert gives_away([[{"deep": ["Plan.", text]}]], task)
    shown = task.model_copy(update={"description": f"{task.description} {text}"})
    assert not gives_away([text], shown), "what the task says is not hidden"


@pytest.mark.parametrize(
    ("text", "task"),
    [
        ("Read 42 lines.", hidden(type="answer", expected="42")),
        ("Give it 0.5 s.", hidden(type="answer", expected=0.5)),
        ("Say no.", hidden(type="answer", expected="no")),
        ("Reread it.", hidden(type="answer", expected="read")),
        ("It is 3650 or 365.5.", hidden(type="answer", expected="365")),
        ("Take steps 1, 2, 3.", hidden(type="stdout", expected="1\n2\n3\n")),
        ("The total of a city.", DATA),
        ("Print the total.", hidden(type="file", path="o.json", match="json", expected="{}")),
        ("Plan first.", hidden(type="stdout", expected="---------\n[")),
        ("Plan first.", hidden(type="stdout", expected="[" * 5000, match="contains")),
    ],
)
def test_what_turns_up_everywhere_is_no_answer(text: str, task: Task) -> None:
    assert not gives_away([text], task)


def test_a_limit_that_is_also_the_answer_is_no_answer() -> None:
    assert not gives_away([512], hidden(type="answer", expected=512.0))
    assert gives_away([4815162342], NUMBER)
