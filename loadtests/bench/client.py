"""A small HTTP client that waits for every answer it asked for; its last line is the same as that of `wrk.lua`.

wrk drops what is under way when its time is up. Where an answer takes a good part of that time, this hides work that
was done, and leaves the server busy with it while the next one is measured.

python -m loadtests.bench.client URL CONNECTIONS SECONDS BODY-FILE[:BODY-FILE ...] [HEADER VALUE ...]
"""

from __future__ import annotations

import asyncio
import http
import json
import os
import sys
import time
import urllib.parse
from collections.abc import Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import cast

import httptools
import uvloop

from loadtests.figures import percentile

__all__ = ["Connection", "main"]


class Record:
    """What all connections share.

    Args:
        until: when to send no more, by `time.perf_counter`.
    """

    def __init__(self, until: float) -> None:
        self.until = until
        self.seconds: list[float] = []
        self.errors = 0
        self.last = 0.0


class Connection(asyncio.Protocol):
    """One request at a time, each time the next message; `done` is resolved after the last."""

    def __init__(self, messages: Sequence[bytes], first: int, record: Record) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._messages = islice(cycle(messages), first % len(messages), None)
        self._record = record
        self._parser = httptools.HttpResponseParser(self)
        self._began = 0.0
        self._waiting = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._send()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        now = time.perf_counter()
        self._record.seconds.append(now - self._began)
        self._record.last = now
        self._waiting = False
        if self._parser.get_status_code() != http.HTTPStatus.OK:
            self._record.errors += 1
        if now < self._record.until:
            self._send()
        else:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  the protocol's signature
        if self._waiting:
            self._record.errors += 1
        self.done.set_result(None)

    def _send(self) -> None:
        self._began = time.perf_counter()
        self._waiting = True
        self._transport.write(next(self._messages))


def _itself(connection: Connection) -> Connection:
    return connection


async def run(url: str, num_connections: int, seconds: float, messages: Sequence[bytes]) -> dict[str, float]:
    target = urllib.parse.urlsplit(url)
    assert target.hostname
    assert target.port
    loop = asyncio.get_running_loop()
    cpu_began, began = time.process_time(), time.perf_counter()
    record = Record(began + seconds)
    connections = [Connection(messages, number, record) for number in range(num_connections)]
    for connection in connections:
        await loop.create_connection(partial(_itself, connection), target.hostname, target.port)
    await asyncio.gather(*(connection.done for connection in connections))
    latencies = record.seconds or [0.0]
    return {
        "answers": len(record.seconds),
        "seconds": max(record.last, began + 1e-9) - began,
        "p50_s": percentile(latencies, 0.5),
        "p99_s": percentile(latencies, 0.99),
        "errors": record.errors,
        "cpu_s": time.process_time() - cpu_began,
    }


def main(arguments: list[str]) -> None:
    url, num_connections, seconds, body_files, *headers = arguments
    bodies = [Path(name).read_bytes() for name in body_files.split(os.pathsep)]
    target = urllib.parse.urlsplit(url)
    lines = [f"POST {target.path} HTTP/1.1", f"Host: {target.netloc}"]
    lines += [f"{name}: {value}" for name, value in zip(headers[::2], headers[1::2], strict=True)]
    head = "\r\n".join(lines)
    messages = [f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]
    print(json.dumps(uvloop.run(run(url, int(num_connections), float(seconds), messages))))


if __name__ == "__main__":
    main(sys.argv[1:])
