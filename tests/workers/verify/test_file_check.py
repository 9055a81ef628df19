"""Files the agent should have left."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tests.workers.verify.scripted import Judge, ScriptedSandbox

SHA = hashlib.sha256(b"data").hexdigest()


@pytest.mark.parametrize(
    ("check", "content", "passed"),
    [
        ({}, b"", True),
        ({"expected": "a"}, b"a\n", True),
        ({"expected": "a"}, b"\xef\xbb\xbfa", True),
        ({"expected": "a\nb", "match": "lines"}, b"a \r\nb\r\n", True),
        ({"expected": "b", "match": "contains"}, b"abc", True),
        ({"expected": "^b$", "match": "regex"}, b"a\nb\n", True),
        ({"expected": "a"}, b"b", False),
        ({"expected": "a"}, b"\xff\xfe", False),
        ({"sha256": SHA}, b"data", True),
        ({"sha256": SHA}, b"data\n", False),
        ({"sha256": SHA, "expected": "other"}, b"data", False),
        ({"exists": False}, b"", False),
    ],
)
async def test_content(judge: Judge, check: dict[str, Any], content: bytes, passed: bool) -> None:
    sandbox = ScriptedSandbox({"out.txt": content})
    result = await judge({"type": "file", "path": "out.txt", **check}, sandbox=sandbox)
    assert result.passed is passed, result.detail


@pytest.mark.parametrize(
    ("expected", "content", "detail"),
    [
        ('{"a": 1, "b": [1, 2]}', '{"b":[1,2.0],"a":1.0}', ""),
        ("[1]", "[true]", "$[0]: expected '1', got 'True'"),
        ('{"a": {"b": [1, 2]}}', '{"a": {"b": [1, 3]}}', "$.a.b[1]: expected '2', got '3'"),
        ('{"a": 1}', '{"b": 1}', "$: missing keys ['a'], unexpected keys ['b']"),
        ("[1, 2]", "[1]", "$: 2 items expected, got 1"),
        ("[1]", "[1", "not JSON"),
        ("[1]", "[" * 100_000, "not JSON"),
    ],
)
async def test_json_is_compared_by_value(
    judge: Judge, expected: str, content: str, detail: str
) -> None:
    check = {"type": "file", "path": "a.json", "expected": expected, "match": "json"}
    result = await judge(check, sandbox=ScriptedSandbox({"a.json": content}))
    assert result.passed is (detail == "")
    assert detail in result.detail


async def test_a_missing_file_fails_and_is_named(judge: Judge) -> None:
    result = await judge({"type": "file", "path": "out/a.txt"})
    assert not result.passed and "out/a.txt" in result.detail


async def test_absence_can_be_asked_for(judge: Judge) -> None:
    sandbox = ScriptedSandbox({"kept.txt": "x"})
    for path in ("removed.txt", "no/such/folder.txt"):
        assert (
            await judge({"type": "file", "path": path, "exists": False}, sandbox=sandbox)
        ).passed
