"""gRPC over HTTP/2 on the server's side: messages, time-outs, statuses, and who answers which method.

Facts: gRPC's own "gRPC over HTTP/2". Predictions are answered without a task; every other method (health, reflection,
metadata) runs as the coroutine that it would be under `grpc.aio`, with as much of its context as such methods use.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import re
import time
import urllib.parse
from collections.abc import AsyncIterator, Callable, Mapping
from http import HTTPStatus
from math import inf
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from gateway.busy_poll import BusyPoll
from gateway.grpc.headers import encode_headers
from gateway.grpc.http2 import Http2Connection
from gateway.grpc.messages import ACCEPTED, PREFIX, BadMessage, MessageReader
from gateway.grpc.patience import Patience
from gateway.grpc.streams import Limits, Stream

__all__ = ["Call", "GrpcApplication", "Hot"]

_log = logging.getLogger("penstock.grpc")

_INTERNAL = "internal error of the gateway; see its log"

Hot = Callable[[bytes | bytearray, "Call"], None]
"""Gets one request message; sees to it that the call is answered, now or later."""

_STATUS_200 = b"\x88"
"""`:status: 200`, the 8th entry of HPACK's static table."""
_HEADERS = _STATUS_200 + encode_headers((b"content-type", b"application/grpc"), (b"grpc-accept-encoding", ACCEPTED))
_OK = encode_headers((b"grpc-status", b"0"))
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")
_MAX_DETAILS = 7000
"""Bytes of `grpc-message`: grpcio's clients begin to refuse metadata at 8 KiB."""
_CUT_ESCAPE = re.compile(rb"%.?\Z")
_BUFFER_BYTES = 2**18
"""What one read takes from a socket at most."""
_AHEAD = 1
"""Messages of a streaming client that wait for its coroutine; the others wait for the client's window."""
_CONTENT_TYPES = frozenset({b"application/grpc", b"application/grpc+proto"})


class Call:
    """One call, as a method sees it; stands where `grpc.aio` gives a `ServicerContext`."""

    __slots__ = (
        "_application",
        "_headers_sent",
        "_trailing",
        "began",
        "deadline",
        "messages",
        "on_cancel",
        "over",
        "stream",
        "task",
    )

    def __init__(self, application: GrpcApplication, stream: Stream) -> None:
        self._application = application
        self._headers_sent = False
        self._trailing: list[tuple[bytes, bytes]] = []
        self.stream = stream
        self.began = time.monotonic()
        timeout = stream.headers.get(b"grpc-timeout")
        self.deadline = inf if timeout is None else self.began + _seconds(timeout)
        """Monotonic second; infinite when the client set none."""
        self.over = False
        self.on_cancel: Callable[[], None] | None = None
        """Called when the client is gone before it was answered."""
        self.task: asyncio.Task[None] | None = None
        self.messages: asyncio.Queue[bytes | None] | None = None
        """What a streaming client has sent; None at the end."""

    def reply(self, message: bytes, *trailers: tuple[bytes, bytes]) -> None:
        """The one answer of a unary method, and the end of the call."""
        if self.over:
            return
        self._end()
        last = _OK + encode_headers(*trailers) if trailers else _OK
        self.stream.answer(_HEADERS, PREFIX.pack(0, len(message)) + message, last)

    def send(self, message: bytes) -> None:
        """One of several answers."""
        if not self.over:
            self.stream.answer(b"" if self._headers_sent else _HEADERS, PREFIX.pack(0, len(message)) + message, None)
            self._headers_sent = True

    def finish(self, code: grpc.StatusCode = grpc.StatusCode.OK, details: str = "", *more: tuple[bytes, bytes]) -> None:
        """The end of the call, with a status and more trailers."""
        if self.over:
            return
        self._end()
        number: int = code.value[0]
        trailers = [(b"grpc-status", b"%d" % number), *self._trailing, *more]
        if details:
            trailers.append((b"grpc-message", _percent_encoded(details)))
        block = encode_headers(*trailers)
        self.stream.answer(b"", b"", block if self._headers_sent else _HEADERS + block)

    def fail(self, code: grpc.StatusCode, details: str) -> None:
        """The end of the call, and of the coroutine that may be at work on it."""
        self.finish(code, details)
        if self.task is not None:
            self.task.cancel()

    def cancel(self) -> None:
        """Nobody waits for an answer any more."""
        if self.over:
            return
        on_cancel = self.on_cancel
        self._end()
        if on_cancel is not None:
            on_cancel()
        if self.task is not None:
            self.task.cancel()

    def _end(self) -> None:
        self.over = True
        self._application.calls.discard(self)
        # without these, call, stream and the message would be a cycle, and stay until the collector comes by
        self.stream.call = self.on_cancel = None

    # what coroutines written for grpc.aio ask of their context

    def time_remaining(self) -> float | None:
        return None if self.deadline == inf else max(self.deadline - time.monotonic(), 0.0)

    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self._trailing = [(name.encode(), value.encode()) for name, value in metadata]

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        self.finish(code, details)
        raise grpc.aio.AbortError(details)

    async def write(self, message: Any) -> None:
        self.send(message.SerializeToString())
        await self.stream.sent()


class GrpcApplication:
    """Answers the streams of all connections: see `gateway.grpc.http2.Application`."""

    def __init__(
        self,
        limits: Limits,
        *,
        max_message_bytes: int,
        patience: Patience,
        poll: BusyPoll | None = None,
    ) -> None:
        self._poll = poll
        self._buffer = bytearray(_BUFFER_BYTES)
        self.connections: set[Http2Connection] = set()
        self.calls: set[Call] = set()
        self._limits = limits
        self._messages = MessageReader(max_message_bytes)
        self._patience = patience
        self._hot: dict[bytes, Hot] = {}
        self._methods: dict[bytes, Any] = {}
        """`grpc.RpcMethodHandler`, whose types are those of grpc's own synchronous server."""

    def connection(self) -> Http2Connection:
        """The protocol of a new connection."""
        return Http2Connection(self, self._limits, self._buffer, self._poll)

    def add_hot(self, service: str, methods: Mapping[str, Hot]) -> None:
        """Methods that are answered without a task."""
        self._hot |= {f"/{service}/{name}".encode(): method for name, method in methods.items()}

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Any]) -> None:
        """What generated `add_..._to_server` functions call."""
        self._methods |= {f"/{service}/{name}".encode(): method for name, method in methods.items()}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Generated code calls this with the same methods once more."""

    def enforce(self, now: float) -> None:
        """End what takes too long: requests that never end, coroutines past their deadline, silent connections."""
        for call in list(self.calls):
            if text := self._overdue(call, now):
                call.fail(grpc.StatusCode.DEADLINE_EXCEEDED, text)
        for connection in list(self.connections):
            self._patience.end_overdue(connection, now)

    def _overdue(self, call: Call, now: float) -> str:
        """Why a call has to end, if it has to."""
        stream, messages, patience = call.stream, call.messages, self._patience
        if call.task is not None and now > call.deadline:
            return "the deadline has passed"
        if stream.ended:
            return ""
        if messages is None:
            heard = now if stream.held_back else stream.heard
            return patience.why_overdue(now, heard=heard, began=call.began, deadline=call.deadline)
        # of a conversation, pauses between its messages are none of our business, and neither are those that we make
        if not stream.body or stream.held_back or messages.qsize() >= _AHEAD:
            return ""
        return patience.why_overdue(now, heard=stream.heard, began=now)

    def end_tasks(self) -> list[asyncio.Task[None]]:
        """End what runs as a coroutine, such as a watch that would never end."""
        tasks = []
        for call in list(self.calls):
            if call.task is not None:
                tasks.append(call.task)
                call.fail(grpc.StatusCode.UNAVAILABLE, "the gateway is shutting down")
        return tasks

    # what connections call

    def opened(self, connection: Http2Connection) -> None:
        connection.retires = connection.last_activity + self._patience.age_of_one()
        self.connections.add(connection)

    def lost(self, connection: Http2Connection) -> None:
        self.connections.discard(connection)

    def begun(self, stream: Stream) -> None:
        headers = stream.headers
        if headers[b":method"] != b"POST":
            stream.answer(b"", b"", _status(HTTPStatus.METHOD_NOT_ALLOWED, (b"allow", b"POST")))
            return
        if not _is_grpc(headers.get(b"content-type", b"")):
            stream.answer(b"", b"", _status(HTTPStatus.UNSUPPORTED_MEDIA_TYPE))
            return
        path = headers[b":path"]
        call = Call(self, stream)
        if stream.header_bytes > self._limits.max_header_bytes:
            text = f"metadata of {stream.header_bytes} bytes exceeds {self._limits.max_header_bytes}"
            call.finish(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        elif path in self._hot or path in self._methods:
            self.calls.add(call)
            stream.call = call
            method = self._methods.get(path)
            if method is not None and method.request_streaming:
                call.messages = asyncio.Queue()
                call.task = asyncio.ensure_future(_converse(self, method, call))
        else:
            call.finish(grpc.StatusCode.UNIMPLEMENTED, f"method {path.decode('latin-1')[:200]} is not offered")

    def received(self, stream: Stream) -> None:
        call = stream.call
        if not isinstance(call, Call) or call.over:
            return
        try:
            if call.messages is not None:
                self.feed(call)
                return
            stream.expect(self._messages.size_of_only(stream.body))
        except BadMessage as error:
            call.fail(error.code, str(error))

    def ended(self, stream: Stream) -> None:
        call = stream.call
        if not isinstance(call, Call) or call.over:
            return
        try:
            if call.messages is not None:
                self.feed(call)
                return
            message = self._messages.only(stream.body, stream.headers.get(b"grpc-encoding", b"identity"))
        except BadMessage as error:
            call.fail(error.code, str(error))
            return
        stream.body = bytearray()
        hot = self._hot.get(stream.headers[b":path"])
        if hot is not None:
            try:
                hot(message, call)
            except Exception:  # noqa: BLE001  what one call brings about is none of the others' business
                _log.exception("a call failed")
                call.finish(grpc.StatusCode.INTERNAL, _INTERNAL)
        else:
            call.task = asyncio.ensure_future(_answer(self._methods[stream.headers[b":path"]], message, call))

    def dropped(self, stream: Stream) -> None:
        if isinstance(stream.call, Call):
            stream.call.cancel()

    def feed(self, call: Call) -> None:
        """Hand on what is complete of a streaming client's messages, as far as its coroutine takes them."""
        stream, messages = call.stream, call.messages
        assert messages is not None
        if call.over:
            return
        while messages.qsize() < _AHEAD:
            message = self._messages.first(stream.body, stream.headers.get(b"grpc-encoding", b"identity"))
            if message is not None:
                stream.consume(self._messages.size(stream.body))
                messages.put_nowait(message)
            elif not stream.ended:
                stream.expect(self._messages.size(stream.body))
                return
            elif stream.body:
                raise BadMessage(grpc.StatusCode.INTERNAL, f"the last {len(stream.body)} bytes are no message")
            else:
                messages.put_nowait(None)


async def _answer(method: Any, message: bytes | bytearray, call: Call) -> None:
    """A method that takes one message."""
    async with _Guard(call):
        request = _deserialized(method, message)
        if method.response_streaming:
            await _stream(method.unary_stream(request, call), method, call)
        else:
            response = await method.unary_unary(request, call)
            call.send(method.response_serializer(response))
            call.finish()


async def _converse(application: GrpcApplication, method: Any, call: Call) -> None:
    """A method that takes a stream of messages and gives one."""
    async with _Guard(call):
        await _stream(method.stream_stream(_requests(application, method, call), call), method, call)


async def _requests(application: GrpcApplication, method: Any, call: Call) -> AsyncIterator[Any]:
    assert call.messages is not None
    while (message := await call.messages.get()) is not None:
        yield _deserialized(method, message)
        application.feed(call)


def _deserialized(method: Any, message: bytes | bytearray) -> Any:
    try:
        return method.request_deserializer(message)
    except (DecodeError, UnicodeDecodeError) as error:
        raise BadMessage(grpc.StatusCode.INTERNAL, "the request cannot be deserialized") from error


async def _stream(answers: Any, method: Any, call: Call) -> None:
    if inspect.isasyncgen(answers):
        async for answer in answers:
            call.send(method.response_serializer(answer))
            await call.stream.sent()
    else:  # it writes to its context
        await answers
    call.finish()


class _Guard:
    """What a coroutine leaves by raising becomes the call's status."""

    def __init__(self, call: Call) -> None:
        self._call = call

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, kind: object, error: BaseException | None, _: object) -> bool:
        if error is None or isinstance(error, grpc.aio.AbortError):
            return True
        if isinstance(error, asyncio.CancelledError):
            self._call.finish(grpc.StatusCode.CANCELLED, "cancelled")
            return False
        if isinstance(error, BadMessage):
            self._call.finish(error.code, str(error))
            return True
        _log.error("a call failed", exc_info=error)
        self._call.finish(grpc.StatusCode.INTERNAL, _INTERNAL)
        return True


def _seconds(timeout: bytes) -> float:
    """`grpc-timeout`: at most 8 digits and a unit; one that is malformed counts as none."""
    number, unit = timeout[:-1], timeout[-1:]
    if unit not in _UNITS or not number.isdigit() or len(number) > 8:
        return inf
    return int(number) * _UNITS[unit]


def _is_grpc(content_type: bytes) -> bool:
    """`application/grpc`, also with the format that it always is, and with parameters; not `application/grpc-web`."""
    if content_type in _CONTENT_TYPES:
        return True
    return content_type.lower().partition(b";")[0].strip() in _CONTENT_TYPES


def _status(status: HTTPStatus, *headers: tuple[bytes, bytes]) -> bytes:
    """The headers of an answer to what is no call."""
    return encode_headers((b":status", b"%d" % status), *headers)


def _percent_encoded(text: str) -> bytes:
    """`grpc-message`: UTF-8, with all but printable ASCII as %XX, cut where it gets too long."""
    encoded = urllib.parse.quote(text, safe=_PRINTABLE, errors="backslashreplace").encode()
    if len(encoded) <= _MAX_DETAILS:
        return encoded
    cut = _CUT_ESCAPE.sub(b"", encoded[:_MAX_DETAILS])
    whole = urllib.parse.unquote_to_bytes(cut).decode(errors="ignore")
    return urllib.parse.quote(whole, safe=_PRINTABLE).encode()
