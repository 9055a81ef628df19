"""Sandboxes started before anybody asks: a provider in front of another one.

A ready sandbox is handed out once, to the first episode that asks for its like, and never comes
back. What is kept ready follows what was asked for lately.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import NamedTuple

from common.failures import ConfigurationError
from common.logs import logger
from workers.sandboxes.agent_sandbox import put_files
from workers.sandboxes.protocol import (
    ProbeReport,
    Sandbox,
    SandboxError,
    SandboxProvider,
    SandboxUnavailable,
    SandboxUnsupported,
)
from workers.sandboxes.spec import SandboxSpec

log = logger("pool")

LATELY = 16
"""Starts that decide which kinds are kept ready."""
REFILL_AFTER = 0.05
"""Seconds from a checkout to the start that makes up for it."""
UNUSED = 600.0
"""Seconds after which a start no longer counts as lately."""
MAX_AGE = 1200.0
"""Seconds a ready sandbox may wait; then it makes room for a fresh one."""
TTL = 3600.0
"""Seconds a ready sandbox lives by itself, if it is forgotten; checkout sets the episode's."""
CHECKOUT_PATIENCE = 2.0
"""Seconds a ready sandbox gets to prove that it lives."""
BACKOFF = (1.0, 60.0)
"""Seconds without a start in the background after the first failure, and at most."""
_STOP_PATIENCE = 30.0


class Asked(NamedTuple):
    """One start, remembered."""

    when: float
    kind: str
    spec: SandboxSpec


class Ready(NamedTuple):
    """One sandbox that waits for its episode."""

    sandbox: Sandbox
    born: float


class Pool:
    """Keeps up to ``size`` sandboxes ready, all kinds together; itself a `SandboxProvider`."""

    def __init__(
        self,
        provider: SandboxProvider,
        size: int,
        tell: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Take the provider that starts them; ``tell`` is called with how many are ready."""
        self.backend = provider.backend
        self.capabilities = provider.capabilities
        self._provider = provider
        self._size = size
        self._tell = tell
        self._asked: deque[Asked] = deque(maxlen=max(LATELY, 4 * size))
        self._ready: dict[str, deque[Ready]] = {}
        self._wake = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False
        self._failures = 0
        self._rests_until = 0.0

    async def start(self, spec: SandboxSpec) -> Sandbox:
        """Hand out a ready sandbox, or start one. Raises what the provider raises."""
        kind = kind_of(spec)
        while (ready := self._take(kind)) is not None:
            if await self._give(ready.sandbox, spec) and not self._closed:
                self._note(kind, spec)
                return ready.sandbox
        sandbox = await self._provider.start(spec)
        if self._closed:
            await sandbox.close()
            raise SandboxUnavailable("no more sandboxes: this worker ends")
        self._failures, self._rests_until = 0, 0.0
        self._note(kind, spec)  # only now: what cannot be started is not tried in the background
        return sandbox

    async def probe(self) -> ProbeReport:
        return await self._provider.probe()

    async def reap(self) -> int:
        return await self._provider.reap()

    async def close(self) -> None:
        self._closed = True
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper], timeout=_STOP_PATIENCE)
        for waiting in self._ready.values():
            while waiting:
                self._end(waiting.popleft().sandbox)
        self._told()
        if self._ending:
            await asyncio.wait(self._ending, timeout=_STOP_PATIENCE)
        await self._provider.close()

    # -- checkout ----------------------------------------------------------------------------

    def _take(self, kind: str) -> Ready | None:
        waiting = self._ready.get(kind)
        if not waiting:
            return None
        ready = waiting.popleft()  # the oldest, so that none grows old
        self._told()
        return ready

    async def _give(self, sandbox: Sandbox, spec: SandboxSpec) -> bool:
        """Make a ready sandbox the episode's; a dead one is dropped. Returns whether it lives."""
        try:
            async with asyncio.timeout(CHECKOUT_PATIENCE):
                await sandbox.keep_alive(spec.limits.ttl)
                await sandbox.label(spec.labels)
            await put_files(sandbox, spec.files)
        except SandboxUnsupported:  # a file that cannot be: the spec's fault, not this sandbox's
            self._end(sandbox)
            raise
        except (SandboxError, TimeoutError) as error:  # the next one, or a fresh one, will do
            self._end(sandbox)
            log.info("sandbox.dead_in_pool", sandbox=sandbox.id, error=str(error))
            return False
        except BaseException:
            self._end(sandbox)
            raise
        return True

    def _note(self, kind: str, spec: SandboxSpec) -> None:
        """Remember what was asked for, and see to it that more of it gets ready."""
        self._asked.append(Asked(time.monotonic(), kind, spec))
        # A little later: episodes that begin together are not to wait for each other's refill.
        asyncio.get_running_loop().call_later(REFILL_AFTER, self._wake.set)
        if self._keeper is None and not self._closed:
            self._keeper = asyncio.create_task(self._keep(), name=f"{self.backend} pool")

    # -- refill ------------------------------------------------------------------------------

    async def _keep(self) -> None:
        """Start what is missing, one at a time, so that work on its way keeps its share."""
        while True:
            self._wake.clear()
            self._drop_what_is_not_wanted()
            spec = self._missing()
            pause = self._rests_until - time.monotonic()
            if spec is None or pause > 0:
                with suppress(TimeoutError):
                    async with asyncio.timeout(UNUSED / 10 if spec is None else pause):
                        await self._wake.wait()
                continue
            try:
                sandbox = await self._provider.start(spec)
            except (SandboxError, ConfigurationError, OSError) as error:
                self._failed(error)
                continue
            self._failures = 0
            waiting = self._ready.setdefault(kind_of(spec), deque())
            waiting.append(Ready(sandbox, time.monotonic()))
            self._told()

    def _failed(self, error: Exception) -> None:
        """Rest for a while. An episode that needs a sandbox meets the same error, and tells it."""
        if not self._failures:
            log.warning("sandbox.none_kept_ready", backend=self.backend, error=str(error))
        first, most = BACKOFF
        rest = min(most, first * 2.0 ** min(self._failures, 16))
        asked = getattr(error, "retry_after", None) or 0.0
        self._failures += 1
        self._rests_until = time.monotonic() + max(rest, asked)

    def _drop_what_is_not_wanted(self) -> None:
        now = time.monotonic()
        while self._asked and now - self._asked[0].when > UNUSED:
            self._asked.popleft()
        wanted = self._wanted()
        for kind, waiting in list(self._ready.items()):
            while waiting and (len(waiting) > wanted[kind] or now - waiting[0].born > MAX_AGE):
                self._end(waiting.popleft().sandbox)
            if not waiting:
                del self._ready[kind]
        self._told()

    def _missing(self) -> SandboxSpec | None:
        """Return what to start next, if anything."""
        for kind, count in self._wanted().items():
            if len(self._ready.get(kind, ())) < count:
                return next(bare(asked.spec) for asked in self._asked if asked.kind == kind)
        return None

    def _wanted(self) -> Counter[str]:
        newest_first = [asked.kind for asked in reversed(self._asked)]
        return shares(newest_first, self._size, {k: len(w) for k, w in self._ready.items()})

    # -- ends --------------------------------------------------------------------------------

    def _end(self, sandbox: Sandbox) -> None:
        """End a sandbox beside everything else; `close` waits for it."""
        task = asyncio.create_task(sandbox.close(), name=f"close {sandbox.id}")
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _told(self) -> None:
        self._tell(sum(map(len, self._ready.values())))


def kind_of(spec: SandboxSpec) -> str:
    """Return what two specs must share for a sandbox of the one to do for the other."""
    return spec.model_dump_json(exclude={"files": True, "labels": True, "limits": {"ttl": True}})


def bare(spec: SandboxSpec) -> SandboxSpec:
    """Return the spec of a sandbox that waits: nobody's, empty, and not living for ever."""
    limits = spec.limits.model_copy(update={"ttl": TTL})
    return spec.model_copy(update={"limits": limits, "files": {}, "labels": {}})


def shares(asked: Iterable[str], size: int, ready: Mapping[str, int]) -> Counter[str]:
    """Share out places to kinds by how often each was asked for (method of highest averages).

    ``asked`` has the newest first. Between equals, one that is ready goes first, so that kinds in
    turn do not throw out each other's; then the newest.
    """
    often = Counter(asked)
    places: Counter[str] = Counter()
    for _ in range(size if often else 0):
        best = max(often, key=lambda key: (often[key] / (places[key] + 1), ready.get(key, 0)))
        places[best] += 1
    return places
