"""Say how a text differs from the expected one, in words for a person; None where it does not."""

from __future__ import annotations

import json
from typing import Any, Literal

from workers.verify.patterns import PatternTooSlow, matches
from workers.verify.world import shown

Match = Literal["exact", "lines", "contains", "regex", "json"]


async def difference(expected: str, actual: str, match: Match) -> str | None:
    """Return what is wrong with ``actual``, or None.

    `exact` ignores white space at the end; `lines` ignores it at the end of every line; `regex`
    must be found somewhere (`^` and `$` match at every line); `json` compares values, not text.
    """
    match match:
        case "exact":
            return _first_difference(expected.rstrip(), actual.rstrip())
        case "lines":
            return _first_difference(_without_line_ends(expected), _without_line_ends(actual))
        case "contains":
            return None if expected in actual else f"{shown(expected)} is not in {shown(actual)}"
        case "regex":
            try:
                found = await matches(expected, actual)
            except PatternTooSlow as slow:
                return str(slow)
            return None if found else f"no match of {shown(expected)} in {shown(actual)}"
        case "json":
            return _json_difference(expected, actual)


def _without_line_ends(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.rstrip().splitlines())


def _first_difference(expected: str, actual: str) -> str | None:
    if expected == actual:
        return None
    wanted, got = expected.split("\n"), actual.split("\n")
    for number, (want, have) in enumerate(zip(wanted, got, strict=False), start=1):
        if want != have:
            return f"line {number}: expected {shown(want)}, got {shown(have)}"
    if len(wanted) > len(got):
        return f"it ends after line {len(got)}; then expected {shown(wanted[len(got)])}"
    return f"{len(wanted)} lines expected, but line {len(wanted) + 1} is {shown(got[len(wanted)])}"


def json_flaw(text: str) -> str | None:
    """Return why ``text`` is not JSON, or None."""
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    return None


def _json_difference(expected: str, actual: str) -> str | None:
    flaw = json_flaw(actual)
    if flaw is not None:
        return flaw
    return _value_difference("$", json.loads(expected), json.loads(actual))


def _value_difference(path: str, want: Any, have: Any) -> str | None:
    if isinstance(want, dict) and isinstance(have, dict):
        if want.keys() != have.keys():
            missing, extra = sorted(want.keys() - have.keys()), sorted(have.keys() - want.keys())
            return f"{path}: missing keys {missing}, unexpected keys {extra}"
        pairs = [(f"{path}.{key}", want[key], have[key]) for key in want]
    elif isinstance(want, list) and isinstance(have, list):
        if len(want) != len(have):
            return f"{path}: {len(want)} items expected, got {len(have)}"
        pairs = [(f"{path}[{i}]", *both) for i, both in enumerate(zip(want, have, strict=True))]
    else:
        # JSON knows one kind of number, so 1 is 1.0; but Python's True is 1 too, and that is not.
        same = want == have and isinstance(want, bool) == isinstance(have, bool)
        return None if same else f"{path}: expected {shown(str(want))}, got {shown(str(have))}"
    for where, inner_want, inner_have in pairs:
        found = _value_difference(where, inner_want, inner_have)
        if found is not None:
            return found
    return None
