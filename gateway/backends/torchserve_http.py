"""The way to a TorchServe on this machine: its REST port, whose calls take half as long as those of its gRPC port.

A few kept connections, one call at a time on each. For servers elsewhere gRPC is right: it resolves, balances and
checks; here there is one process on loopback, and nothing to choose.
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple, cast

import httptools

from gateway.backends.backend import BatchLost, BatchRefused

__all__ = ["HttpAnswer", "LocalHttp"]


class HttpAnswer(NamedTuple):
    status: int
    body: bytes


class LocalHttp:
    """Calls to one `host:port`."""

    def __init__(self, address: str, timeout_s: float) -> None:
        """`timeout_s` ends a call that nothing else ended."""
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._timeout_s = timeout_s
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()

    async def post(self, path: str, content_type: str, body: bytes) -> HttpAnswer:
        """Send one request and wait for its answer.

        Raises:
            BatchRefused: nobody accepts a connection.
            BatchLost: the connection broke, or no answer came in time.
        """
        connection = self._idle.pop() if self._idle else await self._connect()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await connection.ask(head.encode() + body)
        except TimeoutError as error:
            connection.close()
            raise BatchLost(f"no answer within {self._timeout_s:g} s") from error
        except BaseException:
            connection.close()
            raise
        if connection.usable:
            self._idle.append(connection)
        return answer

    async def close(self) -> None:
        for connection in list(self._open):
            connection.close()

    async def _connect(self) -> _Connection:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: _Connection(self), self._host, self._port
            )
        except OSError as error:
            raise BatchRefused(f"failed to connect: {error}") from error
        self._open.add(connection)
        return connection

    def lost(self, connection: _Connection) -> None:
        """A connection has ended."""
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)


class _Connection(asyncio.Protocol):
    def __init__(self, owner: LocalHttp) -> None:
        self.usable = True
        self._owner = owner
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []
        self._answer: asyncio.Future[HttpAnswer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def ask(self, message: bytes) -> asyncio.Future[HttpAnswer]:
        self._answer = asyncio.get_running_loop().create_future()
        if self.usable:
            self._transport.write(message)
        else:
            self._answer.set_exception(BatchLost("the connection broke"))
        return self._answer

    def close(self) -> None:
        self.usable = False
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def on_body(self, body: bytes) -> None:
        """Called by the parser."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        body, self._body = b"".join(self._body), []
        if not self._parser.should_keep_alive():
            self.close()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(HttpAnswer(self._parser.get_status_code(), body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        self._owner.lost(self)
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(BatchLost(f"the connection broke: {exc or 'closed'}"))
