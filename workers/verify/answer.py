"""Check the answer that the agent gave to `finish`."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass

from common.task import AnswerCheck
from common.trajectory import CheckResult
from workers.verify.numerals import close, numbers_in
from workers.verify.patterns import PatternTooSlow, flaw, matches
from workers.verify.world import GRACE, World, judged, shown

ANSWER_LIMIT = 64 << 10
"""Characters. An answer is a sentence; what is longer was not meant as one."""

_FENCE = re.compile(r"\A```[^\n`]*\n(.*?)\n?```\Z", re.DOTALL)
_QUOTES = ("``", '""', "''", "“”", "‘’", "「」", "『』", "«»")
_BULLET = re.compile(r"\A(?:[-*•]|\d+[.)])\s+")


@dataclass(frozen=True)
class Answer:
    """Passes when the answer says what was expected, whatever it is wrapped in."""

    id: str
    spec: AnswerCheck

    @property
    def deadline(self) -> float:
        return GRACE * len(self._accepted)

    @property
    def _accepted(self) -> list[str]:
        """The expected answer and its aliases, as text."""
        expected = self.spec.expected
        if isinstance(expected, list):
            return [json.dumps(expected, ensure_ascii=False), *self.spec.aliases]
        if isinstance(expected, float):
            # 42 in JSON arrives as 42.0; nobody is asked to answer `42.0`.
            whole = expected.is_integer() and abs(expected) < 1e15
            return [str(int(expected)) if whole else repr(expected), *self.spec.aliases]
        return [expected, *self.spec.aliases]

    def problems(self) -> list[tuple[str, str]]:
        found = []
        for place, text in enumerate(self._accepted):
            field = "expected" if place == 0 else f"aliases.{place - 1}"
            if not text.strip():
                found.append((field, "is empty: an agent that does nothing would be right"))
            elif self.spec.match == "numeric" and len(numbers_in(text)) != 1:
                found.append((field, f"is not one number: {shown(text)}"))
            elif self.spec.match == "regex" and (wrong := flaw(text)):
                found.append((field, wrong))
            elif self.spec.match == "set" and not _items(text):
                found.append((field, "is an empty set: an agent that does nothing would be right"))
        if isinstance(self.spec.expected, list) and self.spec.match != "set":
            found.append(("expected", "a list is compared with `match: set` only"))
        return found

    async def run(self, world: World) -> CheckResult:
        return judged(self.id, await self._wrong(world.answer))

    async def _wrong(self, answer: str) -> str | None:
        if not answer.strip():
            return "there is no answer"
        if len(answer) > ANSWER_LIMIT:
            return f"the answer has {len(answer)} characters, at most {ANSWER_LIMIT} are read"
        try:
            for text in self._accepted:
                if await self._agrees(text, answer):
                    return None
        except PatternTooSlow as slow:
            return str(slow)
        return f"expected {shown(self._accepted[0])} ({self.spec.match}), got {shown(answer)}"

    async def _agrees(self, expected: str, answer: str) -> bool:
        match self.spec.match:
            case "exact":
                wanted = self._folded(expected)
                return any(self._folded(form) == wanted for form in _unwrapped(answer))
            case "contains":
                return self._folded(expected) in self._folded(answer)
            case "numeric":
                return self._same_number(expected, answer)
            case "regex":
                return await matches(
                    expected, answer.strip(), whole=True, ignore_case=self.spec.ignore_case
                )
            case "set":
                wanted_items = {self._folded(item) for item in _items(expected)}
                return any(
                    {self._folded(item) for item in items} == wanted_items
                    for items in _readings(answer)
                )

    def _folded(self, text: str) -> str:
        text = unicodedata.normalize("NFC", text.strip())
        return text.casefold() if self.spec.ignore_case else text

    def _same_number(self, expected: str, answer: str) -> bool:
        wanted, found = numbers_in(expected), numbers_in(answer)
        if len(found) != 1:
            return False
        return any(close(value, wanted[0][0], self.spec.tolerance) for value in found[0])


def _unwrapped(answer: str) -> list[str]:
    """Return the answer as given and with code fence, quotes and the final period taken off."""
    forms = [answer.strip()]
    while len(forms) < 8:
        text = forms[-1]
        if fenced := _FENCE.match(text):
            text = fenced[1]
        elif len(text) > 1 and text[0] + text[-1] in _QUOTES:
            text = text[1:-1]
        elif text.endswith((".", "。")):
            text = text[:-1]
        else:
            break
        forms.append(text.strip())
    return forms


def _items(text: str) -> list[str]:
    return _readings(text)[0]


def _readings(answer: str) -> list[list[str]]:
    """Return the ways to read ``answer`` as a list: JSON; else one item a line, or by commas."""
    text = _unwrapped(answer)[-1]
    for form in _unwrapped(answer):
        try:
            value = json.loads(form)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, list):
            return [[item if isinstance(item, str) else json.dumps(item) for item in value]]
    by_line = [_bare(part) for part in text.splitlines()]
    by_comma = [_bare(part) for part in re.split(r"[,，、;；\n]", text.strip("[](){}"))]
    readings = [by_line, by_comma] if len(by_line) > 1 else [by_comma, by_line]
    return [[item for item in items if item] for items in readings]


def _bare(item: str) -> str:
    item = _BULLET.sub("", item.strip()).rstrip(",，、;；")
    return _unwrapped(item)[-1]
