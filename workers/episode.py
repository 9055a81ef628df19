"""One attempt, from first sight to verdict: observe → think → act, until something ends it.

Everything that happens to the agent becomes part of the trajectory it returns. Trouble that is
not the agent's (class infrastructure) or lies in the task itself ends the episode without a
verdict; the failure says so, and the worker decides what becomes of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from dataclasses import dataclass, field
from typing import Any

import orjson

from common.failures import ConfigurationError, Failure, FailureClass, FailureKind, FleetError
from common.llm.types import ModelFailure, ModelRateLimited, ModelRefused, ModelUnavailable
from common.quota.terms import BudgetExceeded
from common.store import BLOB_FROM, Store
from common.task import Assignment
from common.trajectory import (
    Action,
    Blob,
    EnvironmentInfo,
    Observation,
    Provenance,
    Step,
    StopReason,
    Trajectory,
    Usage,
    Verdict,
)
from workers import chat
from workers.environment import Environment, Scene
from workers.policies.base import Policy, Turn
from workers.tools import FINISH, Toolbox, ToolOutput
from workers.verify.world import GRACE

MAX_MALFORMED = 3
"""Malformed answers in a row that are shown back; the next one ends the episode."""
_RESET_DEADLINE = 120.0
"""Seconds a world may take until it shows itself; after that it is broken."""


@dataclass(frozen=True)
class EpisodeLimits:
    """Deadlines of the parts of an episode, seconds."""

    step: float = 30.0


@dataclass
class _Record:
    """What has happened so far."""

    messages: list[dict[str, Any]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    tools: list[dict[str, Any]] = field(default_factory=list)
    usage: Usage = Usage()
    malformed: int = 0
    malformed_in_a_row: int = 0
    throttled: float = 0.0
    waited: float = 0.0
    """Seconds, for our own journal."""
    replayed: Usage = Usage()
    """Of answers that earlier attempts paid for."""
    answer: str = ""
    stop: StopReason | None = None
    failure: Failure | None = None
    verdict: Verdict = Verdict(passed=None)
    environment: EnvironmentInfo = EnvironmentInfo(backend="none")


class Episode:
    """Runs one assignment in one scene with one policy."""

    def __init__(
        self,
        assignment: Assignment,
        attempt_id: str,
        scene: Scene,
        policy: Policy,
        store: Store,
        provenance: Provenance,
        limits: EpisodeLimits = EpisodeLimits(),
    ) -> None:
        self.assignment = assignment
        self.attempt_id = attempt_id
        self.scene = scene
        self.policy = policy
        self.store = store
        self.provenance = provenance
        self.limits = limits
        self._r = _Record()
        self._began = time.time()
        self._clock = self._first_sight = time.monotonic()

    async def run(self) -> Trajectory:
        """Return the whole attempt. Raises only `ConfigurationError` and cancellation."""
        task, r = self.assignment.task, self._r
        try:
            labels = {"task": task.task_id, "attempt": self.attempt_id}
            async with self.scene.environment(task, labels=labels) as environment:
                r.environment = environment.info
                await self._act_until_the_end(environment)
                r.environment = environment.info
                if r.failure is None or r.failure.failure_class is FailureClass.AGENT:
                    async with asyncio.timeout(self._verify_deadline()):
                        r.verdict = await environment.verify(r.answer, r.steps)
        except TimeoutError:
            self._fail(
                Failure(kind=FailureKind.SYSTEM_ERROR, message="the world stopped answering")
            )
        except ConfigurationError:
            raise
        except FleetError as error:
            self._fail(error.as_failure())
        return self._trajectory()

    # -- the loop ----------------------------------------------------------------------------

    @property
    def _remaining(self) -> float:
        """Seconds the agent has left; waiting for rate limits, or for our own queue server, is not
        its time."""
        r = self._r
        spent = time.monotonic() - self._first_sight - r.throttled - r.waited
        return self.assignment.task.timeout - spent

    async def _act_until_the_end(self, environment: Environment) -> None:
        task, r = self.assignment.task, self._r
        async with asyncio.timeout(_RESET_DEADLINE):
            first_sight = await environment.reset()
        self._first_sight = time.monotonic()  # the agent's time begins when it can see something
        toolbox = self.policy.show(environment.tools)
        r.tools = toolbox.schemas
        r.messages = chat.opening(self.assignment, toolbox, self.policy.mode, first_sight)
        r.messages[1:1] = self.policy.examples(toolbox)
        while r.stop is None:
            if len(r.steps) + r.malformed >= task.max_steps:
                r.stop = StopReason.MAX_STEPS
                return
            if self._remaining <= 0:
                self._out_of_time()
                return
            turn = await self._think(toolbox)
            if turn is None:
                return
            objection = turn.objection or next(
                (o for a in turn.actions if (o := toolbox.objection(a))), None
            )
            if objection is not None:
                self._object(turn, objection)
            else:
                await self._act(environment, turn)

    async def _think(self, toolbox: Toolbox) -> Turn | None:
        """Ask the policy; None when that ended the episode."""
        r, before = self._r, self._remaining
        try:
            turn = await self.policy.act(list(r.messages), toolbox, deadline=before)
        except (ModelFailure, BudgetExceeded) as error:
            r.throttled += error.throttled  # somebody else's limit: never the agent's time
            if isinstance(error, ModelRefused):
                r.stop, r.failure = StopReason.FAILURE, error.as_failure()
                return None
            stalled = isinstance(error, ModelUnavailable) and not isinstance(
                error, ModelRateLimited
            )
            # No answer, and no time left either: whose fault is that? One call that ate more
            # than half of all time is a provider that stalls, not an agent that dawdled.
            if not stalled or self._remaining > 0 or before > self.assignment.task.timeout / 2:
                raise
            self._out_of_time()
            return None
        if turn.sent:
            r.messages = list(turn.sent)
        r.messages.append(turn.message)
        r.usage = r.usage + turn.usage
        if turn.replayed:
            r.replayed = r.replayed + turn.usage
        r.throttled += turn.throttled
        r.waited += turn.waited
        return turn

    def _object(self, turn: Turn, reason: str) -> None:
        """Show a malformed answer back; after three in a row, give up."""
        r = self._r
        r.malformed += 1
        r.malformed_in_a_row += 1
        r.messages += chat.complaint(self.policy.mode, reason, turn.native_ids)
        if r.malformed_in_a_row > MAX_MALFORMED:
            r.stop = StopReason.FAILURE
            r.failure = Failure(
                kind=FailureKind.MODEL_ERROR,
                message=f"{r.malformed_in_a_row} malformed answers; the last: {reason}"[:4000],
            )

    async def _act(self, environment: Environment, turn: Turn) -> None:
        """Run a turn's calls in order; none after one that failed."""
        r, task = self._r, self.assignment.task
        r.malformed_in_a_row = 0
        pairs: list[tuple[Action, str]] = []
        usage, failed = turn.usage, False
        for action in turn.actions:
            started, clock = time.time(), time.monotonic()
            if len(r.steps) >= task.max_steps:
                output = ToolOutput("not run: no steps are left", success=False)
            elif failed:
                output = ToolOutput("not run: the call before it failed", success=False)
            elif action.tool == FINISH:
                r.answer = str(action.arguments.get("answer", ""))
                r.stop = StopReason.FINISH
                output = ToolOutput("")
            else:
                timeout = max(0.1, min(self.limits.step, self._remaining))
                output = await environment.call(action, timeout=timeout)
            failed = failed or not output.success
            observation = await self._observe(output)
            r.steps.append(
                Step(
                    step_id=len(r.steps) + 1,
                    thought=turn.thought if action is turn.actions[0] else "",
                    action=action,
                    observation=observation,
                    success=output.success,
                    exit_code=output.exit_code,
                    failure=output.failure,
                    started_at=started,
                    duration=time.monotonic() - clock,
                    usage=usage,
                    parse=turn.parse,
                    model_source=self.policy.agent.model_source,
                    replayed=turn.replayed,
                )
            )
            usage = Usage()
            if r.stop is not None:
                break  # nobody reads what `finish` returns
            pairs.append((action, observation.text))
            answer = self.policy.concludes(action, output)
            if answer is not None:
                r.answer, r.stop = answer, StopReason.FINISH
                break
        if pairs:
            r.messages += chat.results(self.policy.mode, pairs, turn.native_ids)

    async def _observe(self, output: ToolOutput) -> Observation:
        """Cut the view where it is long; keep the whole."""
        text, blobs = output.text, []
        shown = chat.view(text, self.policy.view_chars)
        if shown is not text or len(text.encode()) > BLOB_FROM:
            blobs.append(await self._keep(text.encode(), "text/plain", "txt"))
        for data, media_type, ext in output.images:
            blobs.append(await self._keep(data, media_type, ext))
        cut_from = len(text) if shown is not text else None
        return Observation(text=shown, blobs=tuple(blobs), truncated_from=cut_from)

    async def _keep(self, data: bytes, media_type: str, ext: str) -> Blob:
        return await asyncio.to_thread(self.store.put_blob, data, media_type=media_type, ext=ext)

    # -- the end -----------------------------------------------------------------------------

    def _out_of_time(self) -> None:
        self._r.stop = StopReason.TIMEOUT
        self._r.failure = Failure(
            kind=FailureKind.TIMEOUT,
            message=f"the episode's {self.assignment.task.timeout:g} s are used up",
        )

    def _fail(self, failure: Failure) -> None:
        r = self._r
        r.stop = (
            StopReason.BUDGET
            if failure.kind is FailureKind.BUDGET_EXCEEDED
            else StopReason.CANCELLED
            if failure.kind is FailureKind.CANCELLED
            else StopReason.FAILURE
        )
        r.failure = failure
        r.verdict = Verdict(passed=None)

    def _verify_deadline(self) -> float:
        """Every check bounds itself; this is for a world that stops answering altogether."""
        checks = self.assignment.task.checks
        return sum(getattr(check, "timeout", 0.0) + GRACE for check in checks) + GRACE

    def _trajectory(self) -> Trajectory:
        r, task = self._r, self.assignment.task
        system = r.messages[0] if r.messages else {}
        prompt = orjson.dumps([system, r.tools], option=orjson.OPT_SORT_KEYS)
        provenance = self.provenance.model_copy(
            update={"prompt_sha256": hashlib.sha256(prompt).hexdigest()}
        )
        return Trajectory(
            task_id=task.task_id,
            revision=self.assignment.revision,
            sample=self.assignment.sample,
            attempt_id=self.attempt_id,
            trace_id=trace_id(task.task_id, self.attempt_id),
            assignment=self.assignment,
            task_sha256=task.sha256,
            agent=self.policy.agent,
            environment=r.environment,
            tools=tuple(r.tools),
            messages=tuple(r.messages),
            steps=tuple(r.steps),
            final_result=r.answer,
            stop_reason=r.stop or StopReason.FAILURE,
            malformed_answers=r.malformed,
            verdict=r.verdict,
            failure=r.failure,
            usage=r.usage,
            replayed_usage=r.replayed,
            started_at=self._began,
            finished_at=self._began + (time.monotonic() - self._clock),
            throttled=round(r.throttled, 3),
            provenance=provenance,
        )


def trace_id(task_id: str, attempt_id: str) -> str:
    """Derive the attempt's trace id: the same attempt always has the same."""
    return hashlib.sha256(f"{task_id}/{attempt_id}".encode()).hexdigest()[:32]
