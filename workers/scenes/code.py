"""The code scene: the agent writes and runs programs in a jail of its own."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any, Self

from pydantic import ValidationError

from common.failures import ConfigurationError, Failure, FailureKind
from common.logs import logger
from common.metrics import Metrics
from common.model import explain
from common.settings import Settings
from common.task import Task
from common.trajectory import Action, EnvironmentInfo, Step, Verdict
from workers.sandboxes.protocol import (
    ExecResult,
    ProbeReport,
    Sandbox,
    SandboxError,
    SandboxPathError,
    SandboxProvider,
    SandboxSpent,
    refusal,
)
from workers.sandboxes.python_packages import objection
from workers.sandboxes.registry import admit, held, pooled
from workers.sandboxes.spec import Limits, SandboxSpec
from workers.scenes.code_constraints import CodeConstraints
from workers.tools import Tool, Toolbox, ToolOutput, parameters
from workers.verify.base import InvalidTask, World, validate_checks, verify

log = logger("code")

_SYNTAX = ("SyntaxError", "IndentationError", "TabError")
_TEXT = {"type": "string"}


class CodeScene:
    """Makes one sandbox per episode."""

    name = "code"

    def __init__(self, provider: SandboxProvider, settings: Settings, metrics: Metrics) -> None:
        self._provider = provider
        self._settings = settings
        self._metrics = metrics
        self._report: ProbeReport | None = None
        self._unsafe: tuple[str, ...] | None = None

    async def open(self) -> dict[str, str]:
        self._report = await self._provider.probe()
        self._unsafe = admit(self._report, allow_unsafe=self._settings.allow_unsafe)
        for promise in self._unsafe or ():
            log.warning("sandbox.unsafe", backend=self._report.backend, broken=promise)
        return {"backend": self._report.backend, **self._report.versions}

    async def reap(self) -> int:
        try:
            ended = await self._provider.reap()
        except (SandboxError, ConfigurationError, OSError) as error:
            # Whoever has the left-overs cannot be reached: no reason to stop working.
            log.warning("sandbox.unreaped", backend=self._provider.backend, error=str(error))
            return 0
        if ended:
            self._metrics.reaped.labels(self._provider.backend).inc(ended)
        return ended

    async def close(self) -> None:
        await self._provider.close()

    def objections(self, task: Task) -> list[tuple[str, str]]:
        try:
            constraints = CodeConstraints.model_validate(task.constraints)
        except ValidationError as error:
            return [(f"constraints.{field}", reason) for field, reason in explain(error)]
        if problem := self._lacks(constraints):
            return [problem]
        missing = [t for t in task.tools_to_show() if t not in _TOOL_NAMES]
        if missing and len(missing) == len(task.tools_to_show()):
            return [("expected_tools", f"the code scene has none of {', '.join(missing)}")]
        return validate_checks(task)

    def environment(self, task: Task, *, labels: dict[str, str]) -> CodeEnvironment:
        problems = self.objections(task)
        if problems:
            raise InvalidTask("; ".join(f"{field}: {reason}" for field, reason in problems))
        constraints = CodeConstraints.model_validate(task.constraints)
        checks_take = sum(getattr(check, "timeout", 0.0) for check in task.checks)
        spec = SandboxSpec(
            limits=Limits(
                wall=self._settings.step_timeout,
                # Rate-limit waits stretch an episode; the sandbox must outlive the longest.
                ttl=task.timeout
                + checks_take
                + self._settings.llm_rate_limit_budget
                + self._settings.llm_deadline
                + 60,
                memory_mb=constraints.memory_mb,
                disk_mb=constraints.disk_mb,
                pids=constraints.pids,
            ),
            network=constraints.policy,
            image=constraints.image,
            packages=constraints.python_packages,
            labels=labels,
        )
        world = CodeEnvironment(
            task, constraints, spec, self._provider, self._report, self._metrics
        )
        world.info = world.info.model_copy(update={"unsafe": self._unsafe})
        return world

    def _lacks(self, constraints: CodeConstraints) -> tuple[str, str] | None:
        """Say which constraint this worker cannot meet, and why; None if it can meet all."""
        for field, spec in (
            ("image", SandboxSpec(image=constraints.image)),
            ("network", SandboxSpec(network=constraints.policy)),
            ("python_packages", SandboxSpec(packages=constraints.python_packages)),
        ):
            if reason := refusal(spec, self._provider.capabilities):
                return f"constraints.{field}", f"the {self._provider.backend} back-end {reason}"
        if self._report and (
            reason := objection(constraints.python_packages, self._report.packages)
        ):
            return "constraints.python_packages", reason
        return None


class CodeEnvironment:
    """One sandbox, five tools."""

    def __init__(
        self,
        task: Task,
        constraints: CodeConstraints,
        spec: SandboxSpec,
        provider: SandboxProvider,
        report: ProbeReport | None,
        metrics: Metrics,
    ) -> None:
        self._task = task
        self._constraints = constraints
        self._spec = spec
        self._provider = provider
        self._metrics = metrics
        self._sandbox: Sandbox | None = None
        self._last_stdout: str | None = None
        self._timeout = spec.limits.wall
        self._left_running = False
        first = task.tools_to_show()
        if not first and constraints.language is not None:
            first = ("run_python",) if constraints.language == "python" else ("run_shell",)
        self.tools = Toolbox.of(self._tools(), first=first, only=constraints.only_expected_tools)
        self._packages = report and report.packages
        self.info = EnvironmentInfo(backend=provider.backend, versions=self._versions(report))

    @property
    def sandbox(self) -> Sandbox:
        assert self._sandbox is not None, "entered with `async with`"
        return self._sandbox

    async def __aenter__(self) -> Self:
        backend, clock = self._provider.backend, time.monotonic()
        try:
            self._sandbox = await self._provider.start(self._spec)
        except SandboxError as error:
            self._metrics.sandbox_failures.labels(backend, "start", error.kind.value).inc()
            raise
        self._metrics.sandbox_start.labels(backend).observe(time.monotonic() - clock)
        self._metrics.sandboxes.labels(backend).inc()
        limits = held(self._sandbox.enforced, self.info.unsafe or ())
        digest = limits.pop("image", None)
        self.info = self.info.model_copy(update={"limits": limits, "image_digest": digest})
        return self

    async def __aexit__(self, *exc: object) -> None:
        try:
            await self.sandbox.close()
        finally:
            self._metrics.sandboxes.labels(self._provider.backend).dec()
        if isinstance(exc[1], SandboxError):
            kind = exc[1].kind.value
            self._metrics.sandbox_failures.labels(self._provider.backend, "run", kind).inc()

    async def reset(self) -> str:
        for path, text in self._constraints.files.items():
            try:
                await self.sandbox.write_file(path, text.encode())
            except (SandboxPathError, SandboxSpent) as error:
                raise InvalidTask(f"constraints.files.{path}: {error}") from None
        sight = "Python has its standard library only."
        if "images" in self._provider.capabilities:
            sight = "Python has its standard library, and what its image brought along."
        if self._packages and self._constraints.python_packages:
            names = self._packages.sight(self._constraints.python_packages)
            sight = f"Python has its standard library and these packages: {names}."
        if self._constraints.files:
            sight += " Files in the work folder: " + ", ".join(self._constraints.files)
        return sight

    async def call(self, action: Action, *, timeout: float) -> ToolOutput:
        self._timeout = timeout
        run = self.tools[action.tool].run
        assert run is not None, "finish is the episode's own"
        try:
            return await run(dict(action.arguments))
        except (SandboxPathError, SandboxSpent) as error:
            failure = Failure(kind=FailureKind.RUNTIME_ERROR, message=str(error)[:4000])
            return ToolOutput(f"error: {error}", success=False, failure=failure)

    async def verify(self, answer: str, steps: list[Step]) -> Verdict:
        if self._left_running and not self._constraints.keep_background:
            with suppress(SandboxSpent):  # each check meets it too, and fails
                await self.sandbox.end_background()  # or it could meet the hidden tests
        world = World(
            sandbox=self.sandbox, answer=answer, steps=steps, last_stdout=self._last_stdout
        )
        return await verify(self._task, world)

    def _versions(self, report: ProbeReport | None) -> dict[str, str]:
        """Return the versions of what programs run on, with the packages that others need."""
        if report is None:
            return {}
        picked = self._constraints.python_packages
        packages = report.packages.closure(picked) if report.packages else {}
        return {name: one.version for name, one in packages.items()} | report.versions

    # -- tools -------------------------------------------------------------------------------

    def _tools(self) -> list[Tool]:
        return [
            Tool(
                "run_python",
                "Run a Python program in the work folder; returns what it printed. Each call is "
                "a fresh process: variables do not last, files do.",
                parameters(
                    ["code"],
                    code={**_TEXT, "description": "The whole program."},
                    stdin={**_TEXT, "description": "Text for its standard input."},
                ),
                self._run_python,
            ),
            Tool(
                "run_shell",
                "Run a shell command line in the work folder; returns what it printed. Whatever it "
                "leaves running is killed, unless it is run in the background.",
                parameters(
                    ["command"],
                    command=_TEXT,
                    background={
                        "type": "boolean",
                        "description": "Start it and go on, for servers; returns the file that "
                        "collects its output.",
                    },
                ),
                self._run_shell,
            ),
            Tool(
                "read_file",
                "Return the text of a file.",
                parameters(["path"], path={**_TEXT, "description": "Relative to the work folder."}),
                self._read_file,
            ),
            Tool(
                "write_file",
                "Create or replace a text file.",
                parameters(
                    ["path", "content"],
                    path={**_TEXT, "description": "Relative to the work folder."},
                    content=_TEXT,
                ),
                self._write_file,
            ),
        ]

    async def _run_python(self, arguments: dict[str, Any]) -> ToolOutput:
        result = await self.sandbox.run_python(
            arguments["code"], stdin=arguments.get("stdin", "").encode(), timeout=self._timeout
        )
        return self._ran(result)

    async def _run_shell(self, arguments: dict[str, Any]) -> ToolOutput:
        background = bool(arguments.get("background"))
        result = await self.sandbox.exec(
            arguments["command"], timeout=self._timeout, background=background
        )
        if result.log is None:
            return self._ran(result)
        self._left_running = True
        return ToolOutput(f"started in the background; its output is in {result.log}")

    async def _read_file(self, arguments: dict[str, Any]) -> ToolOutput:
        data = await self.sandbox.read_file(arguments["path"])
        return ToolOutput(data.decode("utf-8", "replace"))

    async def _write_file(self, arguments: dict[str, Any]) -> ToolOutput:
        data = arguments["content"].encode("utf-8", "replace")
        await self.sandbox.write_file(arguments["path"], data)
        return ToolOutput(f"wrote {len(data)} bytes to {arguments['path']}")

    def _ran(self, result: ExecResult) -> ToolOutput:
        if result.status == "ok":
            self._last_stdout = result.stdout
        return ToolOutput(
            _describe(result, self._timeout),
            success=result.status == "ok",
            exit_code=result.exit_code,
            failure=_failure(result, self._timeout),
        )


_TOOL_NAMES = ("run_python", "run_shell", "read_file", "write_file")


def _describe(result: ExecResult, timeout: float) -> str:
    """Put what a program did into text; stdout alone when there is nothing else to say."""
    parts = [result.stdout] if result.stdout else []
    if result.stderr:
        parts.append(f"[stderr]\n{result.stderr}")
    ended = _ended(result, timeout)
    if ended:
        parts.append(f"[{ended}]")
    return "\n".join(part.rstrip("\n") for part in parts) or "(no output)"


def _ended(result: ExecResult, timeout: float) -> str:
    match result.status:
        case "ok":
            return ""
        case "error" if result.exit_code is None:
            return "it could not be started"
        case "error":
            return f"exit code {result.exit_code}"
        case "timeout" if result.duration < timeout * 0.9:
            return "stopped: it used up its processor time"
        case "timeout":
            return f"stopped: still running after {timeout:g} s"
        case "oom":
            return "stopped: it used more memory than allowed"
        case "output_limit":
            return "stopped: it printed more than allowed"
        case "pids_limit":
            return f"exit code {result.exit_code}; it tried to start too many processes"
        case "killed":
            return f"killed by a signal, exit code {result.exit_code}"


def _failure(result: ExecResult, timeout: float) -> Failure | None:
    if result.status == "ok":
        return None
    kind = FailureKind.RUNTIME_ERROR
    if result.status == "timeout":
        kind = FailureKind.TIMEOUT
    elif result.status == "error":
        last = result.stderr.strip().rsplit("\n", 1)[-1]
        if last.startswith(_SYNTAX):
            kind = FailureKind.COMPILE_ERROR
    return Failure(kind=kind, message=_ended(result, timeout))


def build(settings: Settings, metrics: Metrics) -> CodeScene:
    """Return the code scene on the configured sandbox back-end."""
    return CodeScene(pooled(settings, metrics), settings, metrics)
