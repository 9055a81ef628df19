"""The names of everything a scene keeps in Redis; all of it in one Cluster slot."""

from __future__ import annotations

from dataclasses import dataclass

LANES = ("hi", "mid", "lo")
"""Priority 8-10, 4-7, 1-3. Lane numbers in the scripts count from 1 in this order."""

FLEET = "fleet:"
"""Before the names of what belongs to no scene."""

WORKERS = "workers"
REVIEWERS = "reviewers"


@dataclass(frozen=True)
class Keys:
    """Keys of one scene. `tasks:code` and `{tasks:code}:hi` hash to the same slot."""

    scene: str

    @property
    def prefix(self) -> str:
        return f"fleet:{{tasks:{self.scene}}}:"

    @property
    def lanes(self) -> tuple[str, str, str]:
        base = f"tasks:{self.scene}"
        return (f"{{{base}}}:hi", base, f"{{{base}}}:lo")

    @property
    def events(self) -> str:
        return self.prefix + "events"

    @property
    def dead(self) -> str:
        return self.prefix + "dead"

    @property
    def delayed(self) -> str:
        return self.prefix + "delayed"

    @property
    def stats(self) -> str:
        return self.prefix + "stats"

    @property
    def cancel(self) -> str:
        return self.prefix + "cancel"

    @property
    def audit(self) -> str:
        return self.prefix + "audit"

    @property
    def decisions(self) -> str:
        return self.prefix + "decisions"

    @property
    def waits(self) -> str:
        """Units that wait for people, by expiry; members as `wait` ends."""
        return self.prefix + "waits"

    @property
    def cursor(self) -> str:
        return self.prefix + "cursor"

    def ledger(self, task_id: str) -> str:
        return f"{self.prefix}t:{task_id}"

    def journal(self, task_id: str, unit: str) -> str:
        """The model answers a unit of work has paid for, until one of its attempts commits."""
        return f"{self.prefix}j:{task_id}:{unit}"

    def wait(self, member: str) -> str:
        """What a unit waits for; ``member`` of `waits`, `<unit>|<task_id>`."""
        return f"{self.prefix}wait:{member}"

    def approval(self, approval_id: str) -> str:
        return f"{self.prefix}approval:{approval_id}"

    def card(self, consumer: str) -> str:
        return f"{self.prefix}w:{consumer}"
