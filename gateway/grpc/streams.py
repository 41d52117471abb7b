"""One request and its answer on an HTTP/2 connection, and flow control both ways (RFC 9113, section 5.2)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from gateway.grpc.frames import (
    DEFAULT_WINDOW,
    FRAME_BYTES,
    MAX_WINDOW,
    ConnectionFault,
    ErrorCode,
    Flag,
    Kind,
    StreamFault,
    frame,
    window_update,
)
from gateway.grpc.headers import NO_TABLE, Block

__all__ = ["Limits", "Outgoing", "Room", "Stream", "Waiting"]

# taken from their classes once, not for every frame
_DATA, _HEADERS = Kind.DATA, Kind.HEADERS
_END_HEADERS = Flag.END_HEADERS
_LAST_HEADERS = Flag.END_HEADERS | Flag.END_STREAM


class Limits:
    """What one connection may take up.

    Args:
        max_header_bytes: of one request's headers, decoded, by the rule of RFC 9113 (32 more for each).
        max_body_bytes: granted to all requests together beyond `window_bytes` each; likewise of answers that wait for
            the client's windows. At least the longest message.
        max_streams: requests at once.
        window_bytes: what a client may send on one stream before it is let on.
        connection_window_bytes: the same on all streams together, until it is read; at least 65,535.
        max_frame_bytes: of data; whoever sends longer ones sends, and lets us read, fewer.
        linger_s: between the last words on a connection and its end.
    """

    def __init__(
        self,
        *,
        max_header_bytes: int,
        max_body_bytes: int,
        max_streams: int = 100,
        window_bytes: int = 2**20,
        connection_window_bytes: int = 2**22,
        max_frame_bytes: int = 2**20,
        linger_s: float = 0.2,
    ) -> None:
        self.max_header_bytes = max_header_bytes
        self.max_body_bytes = max_body_bytes
        self.max_streams = max_streams
        self.max_block_bytes = 4 * max_header_bytes
        """What is decoded at most, to be refused with a status; beyond that the connection ends."""
        self.window_bytes = window_bytes
        self.max_frame_bytes = max(max_frame_bytes, FRAME_BYTES)
        self.linger_s = linger_s
        self.connection_window_bytes = max(connection_window_bytes, DEFAULT_WINDOW)


class _Connection(Protocol):
    """What a stream asks of its connection."""

    last_activity: float
    limits: Limits
    outgoing: Outgoing
    room: Room


class Stream:
    """One request and its answer."""

    __slots__ = (
        "body",
        "call",
        "closed",
        "connection",
        "ended",
        "granted",
        "header_bytes",
        "headers",
        "heard",
        "id",
        "receive_window",
        "send_window",
        "waiting",
        "wanted",
    )

    def __init__(self, connection: _Connection, number: int, block: Block, *, ended: bool) -> None:
        self.connection = connection
        self.id = number
        self.header_bytes = block.size
        """By the rule of RFC 9113: 32 more for each."""
        self.headers = block.headers
        """Names in lower case, pseudo-headers included; of a repeated one, the last."""
        self.body = bytearray()
        self.call: object = None
        """The application's own."""
        self.ended = ended
        """The client has sent everything."""
        self.closed = False
        self.heard = connection.last_activity
        """Monotonic second since which the client could have sent more of its request, and has not."""
        self.receive_window = connection.limits.window_bytes
        self.granted = 0
        """What the client may send beyond that, for a message that needs it."""
        self.send_window = connection.outgoing.initial_window
        self.wanted = 0
        """Length of the body at which the application is told of it."""
        self.waiting: Waiting | None = None
        """What of the answer waits for the client's windows."""

    @property
    def held_back(self) -> bool:
        """It is we who let the client wait, not the client us."""
        return self.id in self.connection.room.held_back

    def answer(self, headers: bytes, body: bytes, trailers: bytes | None) -> None:
        """The whole answer or its next part: header block (or none), data, last header block (None: later)."""
        if not self.closed:
            self.connection.outgoing.send(self, headers, body, trailers)

    async def sent(self) -> None:
        """Wait until the client's windows have let through all that was answered so far."""
        while self.waiting is not None and not self.closed:
            await self.waiting.over()

    def expect(self, size: int) -> None:
        """Let the client send until the body has so many bytes, now or once there is room for them; tell me then."""
        self.wanted = size
        self.connection.room.expect(self, size)

    def consume(self, size: int) -> None:
        """Take so many bytes from the front of the body, of a stream that goes on."""
        self.connection.room.consume(self, size)


class Room:
    """Windows of a connection's streams, by which all bodies together stay within `Limits`.

    Each stream has its first window; a message that is longer is granted the whole of what it lacks, or it waits in
    turn until others are complete. So no two requests can stop each other halfway.
    """

    def __init__(self, limits: Limits, write: Callable[[bytes], None], streams: dict[int, Stream]) -> None:
        self.held_back: dict[int, int] = {}
        """Streams that wait for others to make room, in turn, and the bytes that they lack."""
        self._limits = limits
        self._write = write
        self._streams = streams
        self._granted = 0

    def expect(self, stream: Stream, size: int) -> None:
        missing = size - len(stream.body) - stream.receive_window
        if missing <= 0 or stream.ended or stream.id in self.held_back:
            return
        if self.held_back or not self._fits(missing):
            self.held_back[stream.id] = missing
        else:
            self._grant(stream, missing)

    def consume(self, stream: Stream, size: int) -> None:
        del stream.body[:size]
        self.give_back(stream)
        if stream.ended or stream.closed:
            return
        free = self._limits.window_bytes - len(stream.body) - stream.receive_window
        if free > 0 and free >= self._limits.window_bytes // 2:
            stream.receive_window += free
            self._write(window_update(stream.id, free))

    def give_back(self, stream: Stream) -> None:
        """A message is complete, or nobody wants it: there is room for others."""
        if not (stream.granted or self.held_back):
            return
        self._granted -= stream.granted
        stream.granted = 0
        self.held_back.pop(stream.id, None)
        while self.held_back:
            number, size = next(iter(self.held_back.items()))
            if not self._fits(size):
                break
            del self.held_back[number]
            stream = self._streams[number]
            stream.heard = time.monotonic()
            self._grant(stream, size)

    def _fits(self, size: int) -> bool:
        # one alone always does: there is nobody whom it could wait for
        return self._granted == 0 or self._granted + size <= self._limits.max_body_bytes

    def _grant(self, stream: Stream, size: int) -> None:
        self._granted += size
        stream.granted += size
        stream.receive_window += size
        self._write(window_update(stream.id, size))


class Waiting:
    """What of one answer waits for the peer to open its windows."""

    __slots__ = ("_over", "data", "trailers")

    def __init__(self) -> None:
        self.data = bytearray()
        self.trailers: bytes | None = None
        self._over: asyncio.Future[None] | None = None

    async def over(self) -> None:
        """Return when it waits no more, for whatever reason. One coroutine may wait."""
        self._over = asyncio.get_running_loop().create_future()
        await self._over

    def end(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)


class Outgoing:
    """The sending half of a connection.

    Args:
        write: takes bytes for the transport.
        finish: is told of each stream whose answer is written to its end.
    """

    def __init__(self, write: Callable[[bytes], None], finish: Callable[[Stream], None]) -> None:
        self.initial_window = DEFAULT_WINDOW
        self.max_frame = FRAME_BYTES
        self.unsent = 0
        """Bytes that wait for the peer's windows."""
        self.waiting_since: float | None = None
        """Monotonic second since which the peer's windows have let nothing through, while something waits."""
        self.spoke = False
        """Something was sent on a stream; whoever wants to know when the next is sets it back."""
        self._window = DEFAULT_WINDOW
        self._write = write
        self._finish = finish
        self._waiting: dict[int, Stream] = {}
        self._widened = False
        """Windows were opened since answers last were let through them."""
        self._prefix = NO_TABLE

    def send(self, stream: Stream, headers: bytes, data: bytes, trailers: bytes | None) -> None:
        """Header block, data and trailers of one stream, as far as the peer's windows allow; the rest follows.

        Header blocks are shorter than 16 KiB: each is one frame.
        """
        out = []
        self.spoke = True
        if headers:
            out.append(frame(_HEADERS, _END_HEADERS, stream.id, self._prefixed(headers)))
        size = len(data)
        waiting = stream.waiting
        if waiting is None and (not size or size <= min(self._window, stream.send_window, self.max_frame)):
            if size:
                self._window -= size
                stream.send_window -= size
                out.append(frame(_DATA, 0, stream.id, data))
            if trailers is not None:
                out.append(frame(_HEADERS, _LAST_HEADERS, stream.id, self._prefixed(trailers)))
            self._write(b"".join(out))
            if trailers is not None:
                self._finish(stream)
            return
        if waiting is None:
            waiting = stream.waiting = Waiting()
            self._waiting[stream.id] = stream
            if self.waiting_since is None:
                self.waiting_since = time.monotonic()
        waiting.data += data
        waiting.trailers = trailers
        self.unsent += size
        self._advance(stream, waiting, out)

    def forget(self, stream: Stream) -> None:
        """The rest of this answer goes nowhere."""
        waiting, stream.waiting = stream.waiting, None
        if waiting is None:
            return
        self.unsent -= len(waiting.data)
        self._waiting.pop(stream.id, None)
        if not self._waiting:
            self.waiting_since = None
        waiting.end()

    def widen(self, grant: int) -> None:
        """The peer's window for the connection. Raises `ConnectionFault`."""
        if not grant:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a window that opens by nothing")
        self._window += grant
        if self._window > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"a window of {self._window}")
        self._widened = True

    def widen_stream(self, stream: Stream, grant: int) -> None:
        """Raises `StreamFault`."""
        if not grant:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR)
        stream.send_window += grant
        if stream.send_window > MAX_WINDOW:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR)
        self._widened = True

    def set_initial_window(self, size: int, streams: Iterable[Stream]) -> None:
        """It changes the windows of all streams (section 6.9.2). Raises `ConnectionFault`."""
        change, self.initial_window = size - self.initial_window, size
        for stream in streams:
            stream.send_window += change
            if stream.send_window > MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"a window of {stream.send_window}")
        self._widened = True

    def flush(self) -> None:
        """Let answers through windows that were opened.

        Called once for all frames that were read together: each of them may concern every answer that waits.
        """
        if not self._widened:
            return
        self._widened = False
        for stream in list(self._waiting.values()):
            if self._window <= 0:
                return
            if stream.waiting is not None:
                self._advance(stream, stream.waiting, [])

    def _advance(self, stream: Stream, waiting: Waiting, out: list[bytes]) -> None:
        data, before = waiting.data, len(waiting.data)
        self.spoke = True
        while data:
            size = min(len(data), self._window, stream.send_window, self.max_frame)
            if size <= 0:
                break
            out.append(frame(_DATA, 0, stream.id, bytes(memoryview(data)[:size])))
            del data[:size]
            self._window -= size
            stream.send_window -= size
        if len(data) < before:
            self.unsent -= before - len(data)
            self.waiting_since = time.monotonic()
        done = not data and waiting.trailers is not None
        if done:
            assert waiting.trailers is not None
            out.append(frame(_HEADERS, _LAST_HEADERS, stream.id, self._prefixed(waiting.trailers)))
        if not data:
            self.forget(stream)
        self._write(b"".join(out))
        if done:
            self._finish(stream)

    def _prefixed(self, block: bytes) -> bytes:
        prefix, self._prefix = self._prefix, b""
        return prefix + block
