"""The least that Python can do: httptools on a bare protocol of uvloop, ONNX Runtime, nothing else.

No framework, no routes, no limits, no metrics; whatever the path, the one model answers.

python -m loadtests.bench.servers.floor PORT DIR MODEL WIRE PROCESSES
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import httptools
import uvloop

from loadtests.bench.servers.bare import Body, answer_of, fork

__all__ = ["Floor", "main"]

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n"


class Floor(asyncio.Protocol):
    """One connection."""

    def __init__(self, answer: Callable[[Body], bytes]) -> None:
        self._answer = answer
        self._parser = httptools.HttpRequestParser(self)
        self._first = b""
        self._buffer = bytearray()  # kept from request to request: fresh memory costs more than copying into old
        self._size = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        """Called by the parser, for each piece; most bodies have but one."""
        if not self._first:
            self._first = body
            return
        if not self._size:
            self._append(self._first)
        self._append(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        body = memoryview(self._buffer)[: self._size] if self._size else self._first
        answer = self._answer(body)
        self._first, self._size = b"", 0
        self._transport.write(_HEAD % len(answer) + answer)

    def _append(self, piece: bytes) -> None:
        end = self._size + len(piece)
        if end > len(self._buffer):
            self._buffer = self._buffer[: self._size] + bytes(end - self._size)
        self._buffer[self._size : end] = piece
        self._size = end


async def serve(port: int, answer: Callable[[Body], bytes]) -> None:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", port))
    server = await asyncio.get_running_loop().create_server(lambda: Floor(answer), sock=listener, backlog=2048)
    await server.serve_forever()


def main(port: str, directory: str, model: str, wire: str, num_processes: str) -> None:
    fork(int(num_processes))
    uvloop.run(serve(int(port), answer_of(Path(directory), model, wire, num_threads=1)))


if __name__ == "__main__":
    main(*sys.argv[1:])
