"""What a worker keeps in mind of its scenes, and of the episodes it runs for them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal

from common.queue.committer import Committer
from common.queue.scene_queue import Lease, SceneQueue
from workers.environment import Scene


@dataclass
class Running:
    """One episode under way."""

    lease: Lease
    queue: SceneQueue
    task: asyncio.Task[None] | None = None
    committing: bool = False
    """Its outcome is on the way to the server, which knows best whose lease it is."""
    stopped: Literal["", "lost", "cancelled"] = ""
    """Why its task was cancelled, where it is not for draining."""


@dataclass
class Line:
    """One scene of this worker."""

    scene: Scene
    queue: SceneQueue
    committer: Committer
    reclaim_at: float = 0.0
    running: int = 0
    served: int = 0
    """The turn in which it last got work: who waited longest goes first."""
