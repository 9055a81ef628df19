"""What checks expect and references hold: nothing of it may reach an agent in words of ours."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress

from pydantic import JsonValue

from common.task import AnswerCheck, CommandCheck, FileCheck, StdoutCheck, Task

_SHORTEST = 8
"""Characters of a text that tells something wherever it turns up."""
_SHORTEST_ANSWER = 3
"""Characters of a whole answer that tells something as a word; "42" turns up everywhere."""
_FEWEST_ITEMS = 4
"""Of a row such as "1 2 3 5": shorter ones turn up everywhere."""
_FIRST_CJK = 0x2E80
"""From here on scripts put no space between words."""

_PUNCTUATION = re.compile(r"[\W_]+")
_THOUSANDS = re.compile(r"(?<=\d)[,_'\u2019](?=\d{3}(?!\d))")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
_SHELL_WORDS = re.compile(r"[\s'\"`$();|&<>={}\[\]]+")


def gives_away(values: Iterable[JsonValue], task: Task) -> bool:
    """Does a text in ``values`` hold a hidden value of ``task``, in whatever spelling?

    Case, width, white space and punctuation make no difference, nor does the order of JSON's keys.
    What the task shows the agent anyway is not hidden.
    """
    told = list(values)
    # A bare number is the value of a field, such as 512 MB: too short to be an answer told.
    theirs = _Words(
        (t for v in told for t in _texts(v)), (t for v in told for t in _texts(v, numbers=False))
    )
    given = [task.description, *_texts(task.constraints)]
    shown = _Words(given, given)
    return any(hint.within(theirs) and not hint.within(shown) for hint in _hidden(task))


class _Words:
    """Texts, to be searched without regard to spelling."""

    def __init__(self, texts: Iterable[str], written: Iterable[str]) -> None:
        self.spaced = _plain(" ".join(texts))
        self.dense = self.spaced.replace(" ", "")
        self.letters = _PUNCTUATION.sub("", self.spaced)
        self.row = _row(self.spaced)
        prose = _plain("\n".join(written))
        self.prose = f"{prose} {_THOUSANDS.sub('', prose)}"


class _Part:
    """A piece of what is hidden, that tells something wherever it turns up."""

    def __init__(self, text: str) -> None:
        self._spaced = _plain(text)
        self._dense = self._spaced.replace(" ", "")
        self._letters = _PUNCTUATION.sub("", self._dense)

    def within(self, words: _Words) -> bool:
        # The most lenient way that still tells something: it finds all that a stricter one does.
        if len(self._letters) >= _SHORTEST:
            return self._letters in words.letters
        row = _row(self._spaced)
        if row.count(" ") > _FEWEST_ITEMS and row in words.row:
            return True
        if len(self._dense) >= _SHORTEST:
            return self._dense in words.dense
        return len(self._spaced) >= _SHORTEST and self._spaced in words.spaced


class _Answer:
    """A short text that is an answer as a whole: found as a word of its own."""

    def __init__(self, text: str) -> None:
        plain = _plain(text)
        digits = sum(char.isdigit() for char in plain)
        common = _NUMBER.fullmatch(plain) is not None and digits < _SHORTEST_ANSWER
        fits = _SHORTEST_ANSWER <= len(plain) < _SHORTEST and bool(_PUNCTUATION.sub("", plain))
        self._word: re.Pattern[str] | None = None
        if fits and not common:
            word = re.escape(plain)
            if not any(ord(char) >= _FIRST_CJK for char in plain):
                word = rf"(?<!\w)(?<!\d\.){word}(?!\w)(?!\.\d*[1-9])"
            self._word = re.compile(word)

    def within(self, words: _Words) -> bool:
        return self._word is not None and self._word.search(words.prose) is not None


class _Fields:
    """JSON that is hidden: found where each of its keys stands before its value, in any order."""

    def __init__(self, value: JsonValue) -> None:
        rows = [_row(_plain(pair)) for pair in _pairs(value)]
        self._rows = rows if sum(len(row.replace(" ", "")) for row in rows) >= _SHORTEST else []

    def within(self, words: _Words) -> bool:
        return bool(self._rows) and all(row in words.row for row in self._rows)


def _hidden(task: Task) -> Iterator[_Part | _Answer | _Fields]:
    for text in _answers(task):
        yield _Answer(text)
        if text.lstrip()[:1] in ("{", "["):
            # What is no JSON is looked for as a text alone.
            with suppress(ValueError, RecursionError):
                yield _Fields(json.loads(text))
    for text in (*_answers(task), *_sources(task)):
        yield _Part(text)
        lines = text.splitlines()
        yield from (_Part(line) for line in lines if len(lines) > 1)


def _answers(task: Task) -> Iterator[str]:
    """Yield what is right, as a whole."""
    for check in task.checks:
        match check:
            case StdoutCheck():
                yield check.expected
            case FileCheck():
                yield check.expected or ""
                yield check.path
                yield check.path.rpartition("/")[2]
            case AnswerCheck():
                yield from _texts([check.expected, check.aliases])  # type: ignore[list-item]
                if isinstance(check.expected, list):
                    yield " ".join(check.expected)
            case CommandCheck():
                pass  # how it is run and what it holds are no answers, but tell them
    if task.reference is not None:
        yield task.reference.answer


def _sources(task: Task) -> Iterator[str]:
    """Yield what right answers can be read from."""
    for check in task.checks:
        match check:
            case StdoutCheck():
                yield check.stdin
                yield from _command(check.run or "")
            case FileCheck():
                yield check.sha256 or ""
            case CommandCheck():
                yield from check.files
                yield from check.files.values()
                yield check.stdout or ""
                yield check.stdin
                yield from _command(check.run)
            case AnswerCheck():
                pass
    if task.reference is not None:
        for action in task.reference.actions:
            yield from _texts(action.arguments)


def _command(run: str) -> Iterator[str]:
    yield run
    yield from _SHELL_WORDS.split(run)


def _pairs(value: JsonValue) -> Iterator[str]:
    """Yield each key with its value, and each list of plain values, as a text."""
    match value:
        case dict():
            for key, inner in value.items():
                if isinstance(inner, dict | list):
                    yield from _pairs(inner)
                else:
                    yield " ".join((key, *_texts(inner)))
        case list():
            plain = [one for one in value if not isinstance(one, dict | list)]
            yield " ".join(text for one in plain for text in _texts(one))
            for inner in value:
                yield from _pairs(inner)
        case _:
            pass


def _plain(text: str) -> str:
    """Return the text in one width and case, without what nobody sees, spaced by single spaces."""
    if not text.isascii():
        wide = unicodedata.normalize("NFKC", text)
        text = "".join(char for char in wide if unicodedata.category(char) != "Cf")
    return " ".join(text.casefold().split())


def _row(plain: str) -> str:
    """Return the words alone, with a space around each."""
    return f" {' '.join(_PUNCTUATION.sub(' ', plain).split())} "


def _texts(value: JsonValue, *, numbers: bool = True) -> Iterator[str]:
    """Yield every text in ``value``, and every number as text."""
    match value:
        case dict():
            for key, inner in value.items():
                yield key
                yield from _texts(inner, numbers=numbers)
        case list():
            for inner in value:
                yield from _texts(inner, numbers=numbers)
        case str():
            yield value
        case bool() | None:
            pass
        case _ if not numbers:
            pass
        case float() if value.is_integer():
            yield str(int(value))
        case _:
            yield str(value)
