"""Check one file that the agent should have left, or should not have left, in its work folder."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import PurePosixPath

from common.task import FileCheck
from common.trajectory import CheckResult
from workers.sandboxes.protocol import SandboxPathError
from workers.verify.compare import difference, json_flaw
from workers.verify.patterns import flaw
from workers.verify.world import GRACE, World, judged


@dataclass(frozen=True)
class File:
    """Passes when the file is there and holds what was expected, or is rightly absent."""

    id: str
    spec: FileCheck

    @property
    def deadline(self) -> float:
        return GRACE

    def problems(self) -> list[tuple[str, str]]:
        found = []
        expected = self.spec.expected
        if not self.spec.exists and (expected is not None or self.spec.sha256 is not None):
            found.append(("exists", "a file that must not exist cannot have expected content"))
        if expected is not None and self.spec.match == "regex" and (wrong := flaw(expected)):
            found.append(("expected", wrong))
        if expected is not None and self.spec.match == "json" and (wrong := json_flaw(expected)):
            found.append(("expected", wrong))
        return found

    async def run(self, world: World) -> CheckResult:
        wrong = await (self._wrong_content(world) if self.spec.exists else self._present(world))
        return judged(self.id, wrong)

    async def _wrong_content(self, world: World) -> str | None:
        try:
            data = await world.sandbox.read_file(self.spec.path)
        except SandboxPathError as error:
            return f"{self.spec.path} cannot be read: {error}"
        digest = hashlib.sha256(data).hexdigest()
        if self.spec.sha256 is not None and digest != self.spec.sha256:
            return f"sha256 of {self.spec.path} is {digest}, expected {self.spec.sha256}"
        if self.spec.expected is None:
            return None
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            return f"{self.spec.path} is not UTF-8 text: {error}"
        wrong = await difference(self.spec.expected, text, self.spec.match)
        return None if wrong is None else f"{self.spec.path}: {wrong}"

    async def _present(self, world: World) -> str | None:
        # Being unreadable is not being absent, so the folder is asked.
        path = PurePosixPath(self.spec.path)
        try:
            entries = await world.sandbox.list_dir(str(path.parent))
        except SandboxPathError:
            return None
        there = any(entry.name == path.name for entry in entries)
        return f"{self.spec.path} exists, but must not" if there else None
