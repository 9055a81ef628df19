"""Runs the stand-in as a process: `python -m tests.standin --port 0 --script script.json`."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from pathlib import Path

from common.process import die_with_parent
from tests.standin import Script, Standin


async def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.standin")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--script", type=Path, required=True)
    options = parser.parse_args()
    die_with_parent(os.getppid())
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    script = Script.load(options.script)
    async with Standin(script, host=options.host, port=options.port, keep_bodies=False) as standin:
        print(json.dumps({"url": standin.url}), flush=True)
        await over.wait()


asyncio.run(main())
