"""What checks expect and references hold: nothing of it may reach an agent in words of ours."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic import JsonValue

from common.task import AnswerCheck, CommandCheck, FileCheck, StdoutCheck, Task

_SHORTEST = 8
"""Characters of a text that tells something when it turns up; "42" turns up everywhere."""


def gives_away(values: Iterable[JsonValue], task: Task) -> bool:
    """Does a text in ``values`` hold a hidden value of ``task``, however it is spaced and cased?

    What the task shows the agent anyway is not hidden.
    """
    told = _Words(text for value in values for text in _texts(value))
    shown = _Words([task.description, *_texts(task.constraints)])
    return any(text in told and text not in shown for text in _hidden(task))


class _Words:
    """Texts, to be searched without regard to case and white space."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._spaced = " ".join(" ".join(texts).casefold().split())
        self._dense = self._spaced.replace(" ", "")

    def __contains__(self, text: str) -> bool:
        spaced = " ".join(text.casefold().split())
        dense = spaced.replace(" ", "")
        return spaced in self._spaced or (len(dense) >= _SHORTEST and dense in self._dense)


def _hidden(task: Task) -> Iterator[str]:
    for text in _sources(task):
        for part in (text, *text.splitlines()):
            if len(part.strip()) >= _SHORTEST:
                yield part


def _sources(task: Task) -> Iterator[str]:
    for check in task.checks:
        match check:
            case StdoutCheck():
                yield check.expected
                yield check.stdin
            case FileCheck():
                yield check.expected or ""
                yield check.sha256 or ""
            case AnswerCheck():
                yield from _texts([check.expected, check.aliases])  # type: ignore[list-item]
            case CommandCheck():
                yield from check.files.values()
                yield check.stdout or ""
                yield check.stdin
    if task.reference is not None:
        yield task.reference.answer
        for action in task.reference.actions:
            yield from _texts(action.arguments)


def _texts(value: JsonValue) -> Iterator[str]:
    """Yield every text and number in ``value``, as text."""
    match value:
        case dict():
            for key, inner in value.items():
                yield key
                yield from _texts(inner)
        case list():
            for inner in value:
                yield from _texts(inner)
        case str():
            yield value
        case bool() | None:
            pass
        case float() if value.is_integer():
            yield str(int(value))
        case _:
            yield str(value)
