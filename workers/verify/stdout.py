"""Check what a program prints: the agent's own last run, or a command run afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from common.task import StdoutCheck
from common.trajectory import CheckResult
from workers.verify.compare import difference
from workers.verify.patterns import flaw
from workers.verify.world import GRACE, World, judged, shown


@dataclass(frozen=True)
class Stdout:
    """Passes when the program ended with exit code 0 and printed what was expected."""

    id: str
    spec: StdoutCheck

    @property
    def deadline(self) -> float:
        return self.spec.timeout + GRACE

    def problems(self) -> list[tuple[str, str]]:
        found = []
        if self.spec.match == "regex" and (wrong := flaw(self.spec.expected)):
            found.append(("expected", wrong))
        if self.spec.match in ("contains", "regex") and not self.spec.expected:
            found.append(("expected", "is empty, and found in any output"))
        if self.spec.run is None and self.spec.stdin:
            found.append(("stdin", "is never read: without `run` no program is started"))
        return found

    async def run(self, world: World) -> CheckResult:
        if self.spec.run is None:
            return judged(self.id, await self._wrong_in_last_run(world.last_stdout))
        return judged(self.id, await self._wrong_in_new_run(world, self.spec.run))

    async def _wrong_in_last_run(self, stdout: str | None) -> str | None:
        if stdout is None:
            return "no program was run to a successful end"
        return await difference(self.spec.expected, stdout, self.spec.match)

    async def _wrong_in_new_run(self, world: World, command: str) -> str | None:
        result = await world.sandbox.exec(
            command, stdin=self.spec.stdin.encode(), timeout=self.spec.timeout
        )
        if result.status != "ok":
            return (
                f"{shown(command)} ended with {result.status} (exit code {result.exit_code}); "
                f"stderr ends with {shown(result.stderr[-200:], 200)}"
            )
        return await difference(self.spec.expected, result.stdout, self.spec.match)
