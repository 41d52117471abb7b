"""An HTTP/2 client, frame by frame, on a connection without sockets to a gRPC server of a few small methods."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import grpc
import hpack

from gateway.grpc.calls import Call, GrpcApplication
from gateway.grpc.frames import FRAME, PREFACE, ErrorCode, Flag, Kind, frame, reset, settings, window_update
from gateway.grpc.http2 import Http2Connection
from gateway.grpc.patience import Patience
from gateway.grpc.streams import Limits

__all__ = ["HEADERS", "LIMITS", "Answer", "Frame", "Peer", "Server", "frames_of", "message"]

HEADERS = {
    ":method": "POST",
    ":scheme": "http",
    ":path": "/test/Echo",
    ":authority": "here",
    "te": "trailers",
    "content-type": "application/grpc",
}
LIMITS = Limits(
    max_header_bytes=1000,
    max_body_bytes=100_000,
    max_streams=10,
    window_bytes=20_000,
    connection_window_bytes=70_000,
    max_frame_bytes=30_000,
    linger_s=0.01,
)
_HIGH_WATER = 65_536
"""As in asyncio: bytes that wait for the socket when a transport says so."""


class Frame(NamedTuple):
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> ErrorCode:
        """Why a stream was reset, or the connection given up."""
        return ErrorCode(struct.unpack(">I", self.payload[4:8] if self.kind == Kind.GOAWAY else self.payload)[0])


@dataclass
class Answer:
    """What came on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    """Of all header blocks: trailers beside the first ones."""
    body: bytes = b""
    ended: bool = False
    reset: ErrorCode | None = None

    @property
    def status(self) -> str:
        return grpc_name(self.headers["grpc-status"])


def grpc_name(number: str) -> str:
    return next(code.name for code in grpc.StatusCode if code.value[0] == int(number))


def message(payload: bytes = b"hello", flag: int = 0, length: int | None = None) -> bytes:
    return struct.pack(">BI", flag, len(payload) if length is None else length) + payload


def frames_of(data: bytes) -> Iterator[Frame]:
    at = 0
    while at < len(data):
        high, low, kind, flags, number = FRAME.unpack_from(data, at)
        at += FRAME.size + (high << 16 | low)
        payload = data[at - (high << 16 | low) : at]
        assert len(payload) == high << 16 | low, "a frame was cut"
        yield Frame(kind, flags, number, payload)


class Server:
    """The application under test, and what reached it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limits: Limits = LIMITS, max_message_bytes: int = 50_000):
        self.loop = loop
        self.limits = limits
        self.application = GrpcApplication(limits, max_message_bytes=max_message_bytes, patience=Patience(age_s=1000))
        self.held: list[Call] = []
        """Calls of `Hold`, which answers nothing by itself."""
        self.cancelled: list[int] = []
        """Streams whose calls were cancelled while held."""
        self.seen: list[bytes] = []
        """Messages that reached a method."""
        self.application.add_hot("test", {"Echo": self._echo, "Hold": self._hold, "Break": self._break})
        self.application.add_registered_method_handlers(
            "test",
            {
                "Chat": grpc.stream_stream_rpc_method_handler(self._chat, bytes, bytes),
                "Count": grpc.unary_stream_rpc_method_handler(self._count, bytes, bytes),
                "Strict": grpc.unary_unary_rpc_method_handler(self._strict, bytes, bytes),
            },
        )

    def connect(self, **options: Any) -> Peer:
        return Peer(self, **options)

    def enforce(self, seconds_later: float) -> None:
        """As the sweep does that looks for what takes too long."""

        async def sweep() -> None:
            self.application.enforce(self.loop.time() + seconds_later)

        self.loop.run_until_complete(sweep())

    @property
    def in_flight(self) -> int:
        return len(self.application.calls)

    def _echo(self, payload: bytes | bytearray, call: Call) -> None:
        self.seen.append(bytes(payload))
        call.reply(bytes(payload))

    def _hold(self, payload: bytes | bytearray, call: Call) -> None:
        self.seen.append(bytes(payload))
        self.held.append(call)
        call.on_cancel = lambda: self.cancelled.append(call.stream.id)

    def _break(self, _: bytes | bytearray, __: Call) -> None:
        raise ZeroDivisionError

    async def _chat(self, requests: AsyncIterator[bytes], _: Call) -> AsyncIterator[bytes]:
        async for request in requests:
            self.seen.append(request)
            yield request

    async def _count(self, request: bytes, _: Call) -> AsyncIterator[bytes]:
        for number in range(int(request) if request.isdigit() else 0):
            self.seen.append(b"%d" % number)
            yield bytes(1000)

    async def _strict(self, _: bytes, call: Call) -> bytes:
        await call.abort(grpc.StatusCode.FAILED_PRECONDITION, "100 % gr\u00fcn\n")


class Peer:
    """The client's side of one connection.

    Args:
        server: whom it speaks to.
        greet: send the preface and these settings first.
        reads: take from the socket what the server writes.
    """

    def __init__(self, server: Server, *, greet: dict[int, int] | bool | None = None, reads: bool = True):
        self.server = server
        self.reads = reads
        self.answers: dict[int, Answer] = {}
        self.said: list[Frame] = []
        """What the server wrote that belongs to no answer."""
        self.data_frames: list[Frame] = []
        self.written = 0
        self.closed = False
        self.reading = True
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self.connection: Http2Connection = server.application.connection()
        self._run(lambda: self.connection.connection_made(self))  # type: ignore[arg-type]
        if greet is not False:
            self.feed(PREFACE, settings(*(greet or {}).items() if isinstance(greet, dict) else ()))

    # as a transport

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.written += len(data)
        if self.reads:
            for each in frames_of(data):
                self._take(each)
        elif self.written > _HIGH_WATER and self.reading:
            self.connection.pause_writing()

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.server.loop.call_soon(self.connection.connection_lost, None)

    abort = close

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    # as a client

    def feed(self, *data: bytes) -> None:
        """Send in one piece, and let the server do what it then has to."""
        if not self.closed:
            self._run(lambda: self._deliver(b"".join(data)))

    def _deliver(self, data: bytes) -> None:
        """As a transport does, in pieces of the buffer's size, which is not left as it was."""
        buffer = self.connection.get_buffer(-1)
        for at in range(0, len(data), len(buffer)):
            piece = data[at : at + len(buffer)]
            buffer[: len(piece)] = piece
            self.connection.buffer_updated(len(piece))
            buffer[: len(piece)] = bytes(len(piece))

    def lose(self) -> None:
        """The connection breaks."""
        self.close()
        self._run(lambda: None)

    def wait(self, seconds: float) -> None:
        self.server.loop.run_until_complete(asyncio.sleep(seconds))

    def block(self, changed: dict[str, str | None] | None = None, **more: str) -> bytes:
        """The usual headers, some of them changed or (None) left out, encoded."""
        headers = HEADERS | (changed or {}) | more
        return self._encoder.encode([(name, value) for name, value in headers.items() if value is not None])

    def begin(self, number: int, method: str = "Echo", *, end: bool = False, **more: str) -> bytes:
        flags = Flag.END_HEADERS | (Flag.END_STREAM if end else 0)
        changed = {":path": f"/test/{method}"} | {name.replace("_", "-"): value for name, value in more.items()}
        return frame(Kind.HEADERS, flags, number, self.block(dict(changed)))

    def data(self, number: int, data: bytes, *, end: bool = True) -> bytes:
        """Frames of at most the usual size."""
        pieces = [data[at : at + 16_384] for at in range(0, len(data), 16_384)] or [b""]
        last = len(pieces) - 1
        return b"".join(
            frame(Kind.DATA, Flag.END_STREAM if end and at == last else 0, number, piece)
            for at, piece in enumerate(pieces)
        )

    def request(self, number: int, method: str = "Echo", payload: bytes = b"hello", **more: str) -> bytes:
        return self.begin(number, method, end=False, **more) + self.data(number, message(payload))

    def call(self, number: int, method: str = "Echo", payload: bytes = b"hello", **more: str) -> Answer:
        self.feed(self.request(number, method, payload, **more))
        return self.answer(number)

    def cancel(self, number: int) -> None:
        self.feed(reset(number, ErrorCode.CANCEL))

    def widen(self, number: int, grant: int) -> None:
        self.feed(window_update(number, grant))

    def answer(self, number: int) -> Answer:
        return self.answers.setdefault(number, Answer())

    def kinds(self, kind: int) -> list[Frame]:
        return [each for each in self.said if each.kind == kind]

    @property
    def goodbye(self) -> ErrorCode | None:
        """Why the server gave up, if it did."""
        last = self.kinds(Kind.GOAWAY)
        return last[-1].code if last else None

    def granted(self, number: int) -> int:
        """By how much the server opened a window until now."""
        updates = [each for each in self.kinds(Kind.WINDOW_UPDATE) if each.stream == number]
        return sum(int.from_bytes(each.payload, "big") for each in updates)

    def _take(self, each: Frame) -> None:
        answer = self.answer(each.stream)
        if each.kind == Kind.HEADERS:
            pairs = [(str(name), str(value)) for name, value in self._decoder.decode(each.payload)]
            assert not answer.ended
            answer.headers |= dict(pairs)
        elif each.kind == Kind.DATA:
            assert answer.headers
            assert not answer.ended
            self.data_frames.append(each)
            answer.body += each.payload
        elif each.kind == Kind.RST_STREAM:
            answer.reset = each.code
        else:
            self.said.append(each)
        if each.kind in (Kind.HEADERS, Kind.DATA):
            answer.ended = bool(each.flags & Flag.END_STREAM)

    def _run(self, do: Callable[[], object]) -> None:
        async def step() -> None:
            do()
            for _ in range(20):  # as many turns as a coroutine of a few awaits takes
                await asyncio.sleep(0)

        self.server.loop.run_until_complete(step())
