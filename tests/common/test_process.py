"""A task that loses a cancellation is asked again, and ends all the same."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from common import process
from common.process import ended, until


async def forgetful(lost: int, tidied: list[bool]) -> None:
    """Loop for ever, and swallow the first cancellations, as a library may."""
    try:
        while True:
            if lost:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    lost -= 1
            else:
                await asyncio.Event().wait()
    finally:
        tidied.append(True)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_ASK_AGAIN", 0.01)


async def test_an_order_to_drain_is_not_lost_with_a_cancellation() -> None:
    draining, tidied = asyncio.Event(), list[bool]()
    waiting = asyncio.create_task(until(draining, forgetful(2, tidied)))
    await asyncio.sleep(0)
    draining.set()
    async with asyncio.timeout(20):
        await waiting
    assert tidied == [True]


async def test_what_ends_others_ends_them_first_when_it_is_cancelled_itself() -> None:
    tidied = list[bool]()
    tasks = [asyncio.create_task(forgetful(lost, tidied)) for lost in (0, 1, 3)]
    await asyncio.sleep(0)
    ending = asyncio.create_task(ended(*tasks))
    await asyncio.sleep(0)
    ending.cancel()
    async with asyncio.timeout(20):
        with pytest.raises(asyncio.CancelledError):
            await ending
    assert len(tidied) == 3 and all(task.done() for task in tasks)


async def test_how_tasks_ended_before_is_nobodys_trouble() -> None:
    async def fails() -> None:
        raise ValueError

    failed = asyncio.create_task(fails())
    with contextlib.suppress(ValueError):
        await failed
    await ended(failed, asyncio.create_task(asyncio.sleep(0)))
    await ended()
