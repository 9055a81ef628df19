"""Check with a command the agent never saw, most often hidden tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath

from common.task import CommandCheck
from common.trajectory import CheckResult
from workers.sandboxes.protocol import ExecResult, SandboxPathError
from workers.verify.patterns import PatternTooSlow, flaw, matches
from workers.verify.world import GRACE, World, judged, shown

_STOPPED = ("timeout", "oom", "output_limit", "pids_limit")


@dataclass(frozen=True)
class Command:
    """Passes when the command ends with the exit code, and prints the pattern if there is one.

    Hidden files come in right before the command and are taken out after it, so that no later
    check sees them.
    """

    id: str
    spec: CommandCheck

    @property
    def deadline(self) -> float:
        return self.spec.timeout + GRACE

    def problems(self) -> list[tuple[str, str]]:
        found = []
        if self.spec.stdout is not None and (wrong := flaw(self.spec.stdout)):
            found.append(("stdout", wrong))
        for path in self.spec.files:
            parts = PurePosixPath(path).parts
            if path.startswith("/") or ".." in parts or not parts:
                found.append(("files", f"{path!r} is not a path inside the work folder"))
        return found

    async def run(self, world: World) -> CheckResult:
        try:
            blocked = await self._put_files(world)
        except SandboxPathError as error:
            blocked = str(error)
        if blocked is not None:
            return judged(self.id, f"the hidden files cannot be put in place: {blocked}")
        result = await world.sandbox.exec(
            self.spec.run, stdin=self.spec.stdin.encode(), timeout=self.spec.timeout
        )
        await self._remove_files(world)
        return judged(self.id, await self._wrong(result))

    async def _put_files(self, world: World) -> str | None:
        """Write the hidden files; returns what the agent put in their way, if it will not go."""
        # What lies there may be a link or a folder of the agent's making: never write through it.
        removed = await self._remove_files(world)
        if removed is not None and removed.status != "ok":
            return _tail(removed)
        for path, content in self.spec.files.items():
            await world.sandbox.write_file(path, content.encode())
        return None

    async def _remove_files(self, world: World) -> ExecResult | None:
        if not self.spec.files:
            return None
        return await world.sandbox.exec(["rm", "-rf", "--", *self.spec.files], timeout=20.0)

    async def _wrong(self, result: ExecResult) -> str | None:
        if result.status in _STOPPED:
            return f"the command was stopped ({result.status}); {_tail(result)}"
        if result.exit_code != self.spec.exit_code:
            return f"exit code {result.exit_code}, expected {self.spec.exit_code}; {_tail(result)}"
        if self.spec.stdout is None:
            return None
        try:
            found = await matches(self.spec.stdout, result.stdout)
        except PatternTooSlow as slow:
            return str(slow)
        return None if found else f"no {shown(self.spec.stdout)} in its output; {_tail(result)}"


def _tail(result: ExecResult) -> str:
    """Return the end of what the command said: tracebacks and test summaries end with the news."""
    name, text = ("stderr", result.stderr) if result.stderr.strip() else ("stdout", result.stdout)
    return f"{name} ends with {shown(text.rstrip()[-240:], 300)}"
