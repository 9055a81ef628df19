"""What a reviewer does besides reviewing: decisions into the audit log, waits that are over."""

from __future__ import annotations

import asyncio
import time

from common.audit import AuditLog
from common.failures import ConfigurationError
from common.logs import logger
from common.metrics import Metrics
from common.queue.connection import Server, ServerGone
from common.settings import Settings
from common.store import Store, StoreError
from common.waits import Waits
from reviewer.judge.calibration import Calibrations

log = logger("reviewer")

_PERIOD = 1.0
"""Seconds between two copies into the audit log, while there is something to copy."""
_LOOK = 10.0
"""Seconds between two looks for waits that are over, and for new calibrations."""


class Upkeep:
    """Runs beside the reviews; any number of reviewers may do it at once."""

    def __init__(
        self, settings: Settings, server: Server, store: Store, scenes: list[str], metrics: Metrics
    ) -> None:
        self._server = server
        self._scenes = scenes
        self._metrics = metrics
        self._log = AuditLog(store.root)
        self._calibrations = Calibrations(store.root)
        self._waits = [Waits(server, scene, ledger_ttl=settings.ledger_ttl) for scene in scenes]
        self._stirred = asyncio.Event()

    def stir(self) -> None:
        """Something was decided."""
        self._stirred.set()

    async def run(self) -> None:
        """Keep up until cancelled; what the disk refuses is tried again."""
        look_at = 0.0
        while True:
            self._stirred.clear()
            try:
                if time.monotonic() >= look_at:
                    look_at = time.monotonic() + _LOOK
                    await self._look()
                await self._log.copy(self._server, self._scenes)
            except (OSError, StoreError) as error:
                log.error("audit.unwritten", error=str(error)[:500])
            except (ServerGone, ConfigurationError):
                raise
            except Exception:  # the boundary of what runs beside: reviews go on, and so does it
                log.exception("upkeep.failed")
            await asyncio.sleep(_PERIOD)
            try:
                async with asyncio.timeout(max(0.0, look_at - time.monotonic())):
                    await self._stirred.wait()
            except TimeoutError:
                continue

    async def last(self) -> None:
        """Copy what was decided since, before the process ends."""
        try:
            await self._log.copy(self._server, self._scenes)
        except (OSError, StoreError) as error:
            log.error("audit.unwritten", error=str(error)[:500])

    async def _look(self) -> None:
        for scene, waits in zip(self._scenes, self._waits, strict=True):
            for wait in await waits.expire(time.time()):
                log.warning("approvals.expired", scene=scene, task_id=wait.task_id, unit=wait.unit)
            self._metrics.undecided.labels(scene).set(await waits.count())
        for one in await asyncio.to_thread(self._calibrations.all):
            self._metrics.judge_kappa.labels(one.scene, one.judge).set(
                float("nan") if one.kappa is None else one.kappa
            )
            self._metrics.judge_accuracy.labels(one.scene, one.judge).set(
                float("nan") if one.balanced_accuracy is None else one.balanced_accuracy
            )
