"""How well a judge agrees with verifiers: measured on stored attempts whose verdict it is not told.

calibrations/<scene>--<judge>.json            what the last measurement came to
calibrations/answers/<scene>--<judge>.jsonl   its answers, so that none is paid for twice

A calibration holds for one rubric and one wording of the questions. Without one a judge may grade,
but accepts nothing alone.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import orjson
from pydantic import Field, ValidationError

from common.agreement import auc, balanced_accuracy, cohen_kappa
from common.failures import ConfigurationError, FleetError
from common.llm.types import Source
from common.logs import logger
from common.model import Contract
from common.queue.connection import ServerGone
from common.review import Judgement
from common.store import Store, StoreError
from common.task import digest
from reviewer.judge.asking import Judge
from reviewer.judge.candidates import Candidate
from reviewer.judge.prompt import PROMPT_SHA256, outcome
from reviewer.judge.tally import kind_of, says_done
from reviewer.rubric import Rubric

log = logger("judge")

_AT_ONCE = 8
"""Attempts asked about at the same time."""
_LEAST = 10
"""Attempts; fewer say nothing about agreement."""
_TROUBLE = (FleetError, ConfigurationError, ServerGone, StoreError, OSError)
"""What may come between a judge and its answer, or between an answer and its file."""


class Confusion(Contract):
    """What the judge said, against what the verifier had found."""

    done_passed: int = 0
    done_failed: int = 0
    """The costly one: the judge lets through what a verifier refused."""
    undone_passed: int = 0
    undone_failed: int = 0


class Calibration(Contract):
    """How far one judge agrees with the verifiers of one scene."""

    scene: str
    judge: str
    """`provider:model`."""
    source: Source
    """Who served it: a stand-in's agreement says nothing about a model."""
    rubric_sha256: str
    prompt_sha256: str
    votes: int = Field(ge=1)
    """Rounds of each question."""
    n: int = Field(ge=0)
    """Attempts it gave a grade to."""
    balanced_accuracy: float | None = Field(ge=0, le=1)
    kappa: float | None = Field(ge=-1, le=1)
    """Null where it is not defined: fewer than 10 attempts, or all passed, or none."""
    auc: float | None = Field(ge=0, le=1)
    unknown: int = Field(ge=0)
    """Attempts about which it could not tell."""
    invalid: int = Field(ge=0)
    """Attempts for which no answer could be read as a vote."""
    own: int = Field(default=0, ge=0)
    """Attempts in which it had acted itself; taken only for want of others."""
    confusion: Confusion
    at: float
    """Unix time, seconds."""


class Answer(Contract):
    """What a judge said of one attempt, and what the verifier had found."""

    task_id: str
    attempt_id: str
    passed: bool
    own: bool
    source: Source
    judgement: Judgement


class Calibrations:
    """All calibrations of a store."""

    def __init__(self, root: Path) -> None:
        self._store = Store(root)
        self._folder = root / "calibrations"

    def find(self, scene: str, judge: str, rubric: Rubric) -> Calibration | None:
        """Return the calibration that holds for this rubric and the questions' wording of today."""
        found = self._read(self.path(scene, judge))
        if found is None or (found.scene, found.judge) != (scene, judge):
            return None
        held = (found.rubric_sha256, found.prompt_sha256) == (rubric.sha256, PROMPT_SHA256)
        return found if held else None

    def trusted(self, scene: str, judge: str, rubric: Rubric, *, floor: float, votes: int) -> bool:
        """May this judge's word count alone? Only if it was measured, and reached the floor."""
        return self.objection(scene, judge, rubric, floor=floor, votes=votes) is None

    def objection(
        self, scene: str, judge: str, rubric: Rubric, *, floor: float, votes: int
    ) -> str | None:
        """Return why a judge is not trusted, in words for a person; None if it is.

        ``votes``: rounds of each question that are asked now.
        """
        found = self.find(scene, judge, rubric)
        if found is None:
            return "not measured with this rubric and these questions"
        if found.source == "standin":
            return "a stand-in answered, whose agreement says nothing about a model"
        if found.votes != votes:
            return f"measured with FLEET_JUDGE_VOTES={found.votes}, and now it is {votes}"
        asked = found.n + found.unknown + found.invalid
        if 2 * found.n < asked:
            return f"it gave a grade to only {found.n} of {asked} attempts"
        if found.kappa is None:
            return f"kappa is not defined: too few attempts of one kind, or fewer than {_LEAST}"
        if found.kappa < floor:
            return f"kappa {found.kappa:.2f} is under the floor of {floor:g}"
        return None

    def all(self) -> list[Calibration]:
        """Return every calibration there is, by scene and judge."""
        paths = sorted(self._folder.glob("*.json")) if self._folder.is_dir() else []
        return [found for path in paths if (found := self._read(path)) is not None]

    def write(self, calibration: Calibration) -> Path:
        """Keep a calibration in the place of the last one. Raises `StoreError`."""
        path = self.path(calibration.scene, calibration.judge)
        data = orjson.dumps(calibration.model_dump(mode="json"), option=orjson.OPT_INDENT_2)
        self._store.put(path, data)
        return path

    def path(self, scene: str, judge: str) -> Path:
        return self._folder / f"{_file_name(scene, judge)}.json"

    def answers(self, scene: str, judge: str) -> Answers:
        """Return the answers of earlier, perhaps interrupted, measurements."""
        return Answers(self._folder / "answers" / f"{_file_name(scene, judge)}.jsonl")

    def _read(self, path: Path) -> Calibration | None:
        try:
            return Calibration.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            # Unread is unmeasured: the judge is not trusted until somebody measures again.
            log.warning("calibration.damaged", path=str(path), error=str(error)[:500])
            return None


class Answers:
    """Answers kept as they come, one line each; what they depend on is part of their key."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Answer] | None = None

    def get(self, key: str) -> Answer | None:
        if self._known is None:
            self._known = dict(self._lines())
        return self._known.get(key)

    def add(self, key: str, answer: Answer) -> None:
        """Keep one answer, durably. Raises `StoreError`."""
        line = orjson.dumps({"key": key, **answer.model_dump(mode="json")}) + b"\n"
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a+b") as file:
                if file.tell() and self._is_torn(file):
                    line = b"\n" + line
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StoreError(f"{self._path}: {error.strerror or error}") from None

    @staticmethod
    def _is_torn(file: BinaryIO) -> bool:
        """Was the last line's writer killed in the middle of it?"""
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"

    def _lines(self) -> Iterable[tuple[str, Answer]]:
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                said = orjson.loads(line)
                yield said.pop("key"), Answer.model_validate(said)
            except (ValueError, KeyError, AttributeError):
                continue  # torn by a kill, or of another release: asked again


async def calibrate(
    judge: Judge,
    scene: str,
    rubric: Rubric,
    chosen: Sequence[Candidate],
    store: Store,
    *,
    told: Callable[[], None] = lambda: None,
) -> Calibration:
    """Ask the judge whether the task was done in each attempt; return how far it agrees.

    Answers are kept as they come, and taken from there the next time. An attempt that the provider
    refuses is an answer that could not be read. Raises what else `ChatModel.complete` raises, and
    `StoreError`, once the attempts under way have been answered.
    """
    answers = Calibrations(store.root).answers(scene, judge.name)
    slots = asyncio.Semaphore(_AT_ONCE)
    given, trouble = list[Answer](), list[Exception]()

    async def one(candidate: Candidate) -> None:
        async with slots:
            if trouble:
                return
            try:
                given.append(await _answer(judge, rubric, candidate, store, answers))
            except _TROUBLE as error:
                trouble.append(error)  # not raised here: that would cancel calls that are paid for
                return
        told()

    async with asyncio.TaskGroup() as group:
        for candidate in chosen:
            group.create_task(one(candidate))
    if trouble:
        raise trouble[0]
    return measured(judge, scene, rubric, given, at=time.time())


async def _answer(
    judge: Judge, rubric: Rubric, candidate: Candidate, store: Store, answers: Answers
) -> Answer:
    known = answers.get(_key(judge, rubric, candidate))
    if known is not None:
        return known
    task_id, attempt_id = candidate.task_id, candidate.attempt_id
    trajectory = await asyncio.to_thread(store.read_attempt, task_id, attempt_id)
    asked = await judge.ask(trajectory, (outcome(rubric),))
    if asked.spent is not None:
        raise asked.spent
    answer = Answer(
        task_id=task_id,
        attempt_id=attempt_id,
        passed=candidate.passed,
        own=judge.is_same_as(candidate.model),
        source=judge.model.source,
        judgement=asked.judgements[0],
    )
    # Not in a thread: between answer and file nothing can be cancelled. With a key of its own: who
    # answers as a stand-in is known only now.
    answers.add(_key(judge, rubric, candidate), answer)
    return answer


def _key(judge: Judge, rubric: Rubric, candidate: Candidate) -> str:
    """Return what an answer is kept under: all that it depends on."""
    served = [judge.name, judge.model.source, judge.endpoint]
    asked = [judge.votes, rubric.sha256, PROMPT_SHA256]
    return digest([candidate.task_id, candidate.attempt_id, *served, *asked])


def measured(
    judge: Judge, scene: str, rubric: Rubric, answers: Sequence[Answer], *, at: float
) -> Calibration:
    """Return what the answers of a judge come to."""
    graded = [(a, a.judgement.median) for a in answers if a.judgement.median is not None]
    pairs = [(says_done(a.judgement), a.passed) for a, _ in graded]
    mute = [a.judgement for a in answers if a.judgement.median is None]
    unknown = sum(any(kind_of(vote) == "unknown" for vote in one.votes) for one in mute)
    defined = len(pairs) >= _LEAST and len({passed for _, passed in pairs}) == 2
    sources: set[Source] = {answer.source for answer in answers}
    return Calibration(
        scene=scene,
        judge=judge.name,
        source="standin" if "standin" in sources else judge.model.source,
        rubric_sha256=rubric.sha256,
        prompt_sha256=PROMPT_SHA256,
        votes=judge.votes,
        n=len(pairs),
        balanced_accuracy=balanced_accuracy(pairs),
        kappa=cohen_kappa(pairs) if defined else None,
        auc=auc([median for _, median in graded], [a.passed for a, _ in graded]),
        unknown=unknown,
        invalid=len(mute) - unknown,
        own=sum(answer.own for answer in answers),
        confusion=Confusion(
            done_passed=pairs.count((True, True)),
            done_failed=pairs.count((True, False)),
            undone_passed=pairs.count((False, True)),
            undone_failed=pairs.count((False, False)),
        ),
        at=at,
    )


def _file_name(scene: str, judge: str) -> str:
    return f"{scene}--{quote(judge, safe=':@+ ')}"  # a model's name may hold a slash
