"""A model stand-in that costs next to nothing: one fixed answer, 200 ms after each request.

Its answers say `system_fingerprint: standin`, so nothing that was made with it is ever exported.
It speaks just enough HTTP/1.1 for one request at a time on a kept-alive connection.
`python -m benchmarks.standin 0.2`: seconds until it answers.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import cast

import uvloop

TOOL = "noop"


def answer() -> bytes:
    """Return the whole HTTP response: a chat completion that calls the tool `noop`."""
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": TOOL, "arguments": '{"note": "next"}'},
    }
    body = json.dumps(
        {
            "id": "1", "object": "chat.completion", "created": 0, "model": "standin",
            "system_fingerprint": "standin",
            "choices": [{
                "index": 0, "finish_reason": "tool_calls",
                "message": {"role": "assistant", "content": "I do it.", "tool_calls": [call]},
            }],
            "usage": {"prompt_tokens": 900, "completion_tokens": 20, "total_tokens": 920},
        }
    ).encode()  # fmt: skip
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


class _Model(asyncio.Protocol):
    """One connection: read a request, answer it after the latency."""

    def __init__(self, latency: float, response: bytes) -> None:
        self._latency = latency
        self._response = response
        self._received = bytearray()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses

    def data_received(self, data: bytes) -> None:
        self._received += data
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self._received[:end]).lower()
        at = head.find(b"content-length:")
        size = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._received) < end + 4 + size:
            return
        del self._received[: end + 4 + size]
        asyncio.get_running_loop().call_later(self._latency, self._reply)

    def _reply(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._response)


async def serve(latency: float) -> None:
    """Answer for ever on a free port; the first line printed is the base URL."""
    loop, response = asyncio.get_running_loop(), answer()
    server = await loop.create_server(
        lambda: _Model(latency, response), "127.0.0.1", 0, backlog=1024
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(float(sys.argv[1])))
