"""A server that is still loading its file is waited for, not refused."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from common.queue.connection import Server
from common.queue.embedded import EmbeddedServer, bundled_valkey
from tests.helpers import eventually


async def test_a_service_that_starts_while_the_server_loads_waits_for_it(tmp_path: Path) -> None:
    """INFO answers meanwhile, and says that there is no append-only file."""
    slow = tmp_path / "slow-server"
    # 100 keys at 20 ms each, answering in between; both are the server's own test settings.
    slowly = "--key-load-delay 20000 --loading-process-events-interval-bytes 1024"
    slow.write_text(f'#!/bin/sh\nexec "{bundled_valkey()}" "$@" {slowly}\n')
    slow.chmod(0o755)
    valkey = EmbeddedServer(tmp_path / "valkey", binary=str(slow))
    valkey.start()
    server = Server(valkey.url, patience=30)
    try:
        await server.client.mset({f"k{n}": random.randbytes(2000) for n in range(100)})
        await server.client.bgrewriteaof()
        await eventually(lambda: rewritten(server), "its file is written anew")
        valkey.kill()
        starting = asyncio.create_task(asyncio.to_thread(valkey.start))

        async def under_way() -> bool:
            assert not starting.done(), "it loads too fast"
            return await loading(server)

        await eventually(under_way, "it loads")
        assert (await server.check()).startswith("valkey")
        await starting
    finally:
        await server.close()
        valkey.stop()


async def rewritten(server: Server) -> bool:
    return not (await server.client.info("persistence"))["aof_rewrite_in_progress"]


async def loading(server: Server) -> bool:
    try:
        return bool((await server.client.info("persistence"))["loading"])
    except OSError:
        return False
    except Exception as error:
        assert "onnect" in str(error), error  # not up yet
        return False
