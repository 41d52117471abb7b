"""HTTP/2 on the server's side (RFC 9113), as much of it as gRPC needs, close to the socket.

Frames, streams and flow control; header compression is the `hpack` library's, asked only for blocks that are new: a
client repeats the same few bytes for every call. What is sent never enters a compression table, so that all headers of
an answer are constants but a few.
"""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple, Protocol, cast

import hpack

__all__ = ["ErrorCode", "Http2Connection", "Limits", "Stream", "StreamFault", "encode_headers"]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FRAME = struct.Struct(">BHBBI")
"""Length (8 and 16 bits), type, flags, stream."""
_SETTING = struct.Struct(">HI")
_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    range(10)
)
_ACK = _END_STREAM = 0x1
_END_HEADERS = 0x4
_PADDED = 0x8
_HAS_PRIORITY = 0x20
_INITIAL_WINDOW_SIZE, _MAX_FRAME_SIZE = 0x4, 0x5
_MAX_WINDOW = 2**31 - 1
_FRAME_BYTES = 16_384
"""Longest frame that we accept: the protocol's least, and enough, since many are read at once."""
_DEFAULT_WINDOW = 65_535
_NO_TABLE = b"\x20"
"""Dynamic table size update to 0, before the first header block of a connection: we never use the table."""
_MAX_CONTINUATIONS = 16
_RESETS_FOR_FREE = 200
"""Streams that a client may reset beyond those it lets finish (CVE-2023-44487)."""
_LINGER_S = 0.2
_MAX_REMEMBERED = 64
"""Header blocks kept decoded per connection."""
_FORBIDDEN = frozenset({b"connection", b"transfer-encoding", b"upgrade", b"keep-alive", b"proxy-connection"})


class ErrorCode(IntEnum):
    """RFC 9113, section 7."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    ENHANCE_YOUR_CALM = 0xB


class ConnectionFault(Exception):
    """The peer broke the protocol: it is told with GOAWAY, and the connection ends."""

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class StreamFault(Exception):
    """One stream ends with RST_STREAM; the connection goes on."""

    def __init__(self, code: ErrorCode) -> None:
        super().__init__(code.name)
        self.code = code


class Limits:
    """What one connection may take up.

    Args:
        max_header_bytes: of one request's headers, decoded, by the rule of RFC 9113 (32 more for each).
        max_body_bytes: held back of all requests together whose end has not come.
        max_streams: requests at once.
        window_bytes: what a client may send on one stream before it is let on.
    """

    def __init__(
        self, *, max_header_bytes: int, max_body_bytes: int, max_streams: int = 1000, window_bytes: int = 2**20
    ) -> None:
        self.max_header_bytes = max_header_bytes
        self.max_body_bytes = max_body_bytes
        self.max_streams = max_streams
        self.window_bytes = window_bytes


class Application(Protocol):
    """Who answers the streams of a connection."""

    def opened(self, connection: Http2Connection) -> None: ...

    def lost(self, connection: Http2Connection) -> None: ...

    def begun(self, stream: Stream) -> None:
        """Headers are there."""

    def received(self, stream: Stream) -> None:
        """`stream.body` has grown."""

    def ended(self, stream: Stream) -> None:
        """The client has sent everything."""

    def dropped(self, stream: Stream) -> None:
        """Nobody waits for the rest of the answer any more."""


class Stream:
    """One request and its answer."""

    __slots__ = (
        "body",
        "call",
        "closed",
        "connection",
        "ended",
        "header_bytes",
        "headers",
        "id",
        "receive_window",
        "send_window",
        "sending",
    )

    def __init__(self, connection: Http2Connection, number: int, block: _Block, send_window: int) -> None:
        self.connection = connection
        self.id = number
        self.header_bytes = block.size
        """By the rule of RFC 9113: 32 more for each."""
        self.headers = block.headers
        """Names in lower case, pseudo-headers included; of a repeated one, the last."""
        self.body = bytearray()
        self.call: object = None
        """The application's own."""
        self.ended = False
        """The client has sent everything."""
        self.closed = False
        self.receive_window = connection.limits.window_bytes
        self.send_window = send_window
        self.sending: _Sending | None = None

    def answer(self, headers: bytes, body: bytes, trailers: bytes | None) -> None:
        """The whole answer or its next part: header block (or none), data, last header block (None: later)."""
        self.connection.send(self, headers, body, trailers)

    def consume(self, size: int) -> None:
        """Take so many bytes from the front of the body, of a stream that goes on."""
        self.connection.consume(self, size)


class _Block(NamedTuple):
    """A decoded header block."""

    headers: dict[bytes, bytes]
    size: int


class _Sending:
    """What waits for the peer to open its window."""

    __slots__ = ("data", "trailers")

    def __init__(self) -> None:
        self.data = bytearray()
        self.trailers: bytes | None = None


class Http2Connection(asyncio.Protocol):
    """One connection."""

    def __init__(self, application: Application, limits: Limits) -> None:
        self.limits = limits
        self.streams: dict[int, Stream] = {}
        self.last_activity = time.monotonic()
        self.stalled_since: float | None = None
        """Monotonic second since which the client takes no answers."""
        self.greeted = False
        """The client has shown that it speaks HTTP/2."""
        self._application = application
        self._buffer = b""
        self._decoder = hpack.Decoder(max_header_list_size=4 * limits.max_header_bytes)
        self._remembered: dict[bytes, _Block] = {}
        self._last_id = 0
        self._block: tuple[int, int, bytearray, int] | None = None
        """A header block that goes on: stream, flags, bytes, frames."""
        self._receive_window = _DEFAULT_WINDOW
        self._send_window = _DEFAULT_WINDOW
        self._initial_send_window = _DEFAULT_WINDOW
        self._max_send_frame = _FRAME_BYTES
        self._held = 0
        """Bytes of bodies whose end has not come."""
        self._resets = 0
        self._goodbye = False
        self._prefix = _NO_TABLE
        self._frames: dict[int, Callable[[int, int, bytes], None]] = {
            _DATA: self._on_data,
            _HEADERS: self._on_headers,
            _PRIORITY: self._on_priority,
            _RST_STREAM: self._on_reset,
            _SETTINGS: self._on_settings,
            _PUSH_PROMISE: self._on_push_promise,
            _PING: self._on_ping,
            _GOAWAY: self._on_goaway,
            _WINDOW_UPDATE: self._on_window_update,
            _CONTINUATION: self._on_continuation,
        }

    # the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._application.opened(self)
        limits = self.limits
        settings = (
            (0x3, limits.max_streams),
            (_INITIAL_WINDOW_SIZE, limits.window_bytes),
            (0x6, limits.max_header_bytes),
        )
        self._write(_frame(_SETTINGS, 0, 0, b"".join(_SETTING.pack(*setting) for setting in settings)))
        self._open_window()

    def data_received(self, data: bytes) -> None:
        self.last_activity = time.monotonic()
        if self._goodbye and not self.streams:
            return
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        at = 0
        try:
            if not self.greeted:
                at = self._greet(data)
            self._buffer = self._read_frames(data, at) if self.greeted else data
        except ConnectionFault as fault:
            self.close(fault.code, str(fault))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._application.lost(self)
        streams, self.streams = self.streams, {}
        for stream in streams.values():
            stream.closed = True
            self._application.dropped(stream)

    def pause_writing(self) -> None:
        """The client does not take its answers: take no more of its requests."""
        self.stalled_since = time.monotonic()
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self.stalled_since = None
        self._transport.resume_reading()

    # the end

    def go_away(self) -> None:
        """Take no new streams; those at work may finish."""
        if not self._goodbye:
            self._goodbye = True
            self._write(_frame(_GOAWAY, 0, 0, struct.pack(">II", self._last_id, ErrorCode.NO_ERROR)))
        self._close_when_done()

    def close(self, code: ErrorCode = ErrorCode.NO_ERROR, text: str = "") -> None:
        """End the connection and tell the peer why."""
        if self._transport.is_closing():
            return
        self._goodbye = True
        self._write(_frame(_GOAWAY, 0, 0, struct.pack(">II", self._last_id, code) + text.encode()))
        self._transport.close()

    def abort(self) -> None:
        """End the connection without another word."""
        self._transport.abort()

    # what is sent

    def send(self, stream: Stream, headers: bytes, data: bytes, trailers: bytes | None) -> None:
        """Header block, data and trailers of one stream, as far as the peer's windows allow; the rest follows."""
        if stream.closed:
            return
        out = []
        if headers:
            out.append(_frame(_HEADERS, _END_HEADERS, stream.id, self._prefixed(headers)))
        waiting = stream.sending
        if waiting is None and len(data) <= min(self._send_window, stream.send_window, self._max_send_frame):
            if data:
                self._send_window -= len(data)
                stream.send_window -= len(data)
                out.append(_frame(_DATA, 0, stream.id, data))
            if trailers is not None:
                out.append(_frame(_HEADERS, _END_HEADERS | _END_STREAM, stream.id, self._prefixed(trailers)))
            self._write(b"".join(out))
        else:
            self._write(b"".join(out))
            if waiting is None:
                waiting = stream.sending = _Sending()
            waiting.data += data
            waiting.trailers = trailers
            self._send_waiting(stream, waiting)
            return
        if trailers is not None:
            self._finish(stream)

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        if not stream.closed:
            self._write(_frame(_RST_STREAM, 0, stream.id, struct.pack(">I", code)))
            self._forget(stream)

    def _send_waiting(self, stream: Stream, waiting: _Sending) -> None:
        data, out = waiting.data, []
        while data:
            size = min(len(data), self._send_window, stream.send_window, self._max_send_frame)
            if size <= 0:
                break
            out.append(_frame(_DATA, 0, stream.id, bytes(data[:size])))
            del data[:size]
            self._send_window -= size
            stream.send_window -= size
        if not data:
            stream.sending = None
            if waiting.trailers is not None:
                flags = _END_HEADERS | _END_STREAM
                out.append(_frame(_HEADERS, flags, stream.id, self._prefixed(waiting.trailers)))
        self._write(b"".join(out))
        if not data and waiting.trailers is not None:
            self._finish(stream)

    def _finish(self, stream: Stream) -> None:
        if stream.ended:
            self._resets = max(self._resets - 1, 0)
        else:  # what is still on its way is of no use to anybody (section 8.1)
            self._write(_frame(_RST_STREAM, 0, stream.id, struct.pack(">I", ErrorCode.NO_ERROR)))
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        stream.closed = True
        if not stream.ended:
            self._held -= len(stream.body)
        self.streams.pop(stream.id, None)
        if self._goodbye:
            self._close_when_done()

    def _close_when_done(self) -> None:
        if not self.streams:
            # not at once: closing on what the client has just sent would reset the connection under our last words
            asyncio.get_running_loop().call_later(_LINGER_S, self._transport.close)

    def _prefixed(self, block: bytes) -> bytes:
        prefix, self._prefix = self._prefix, b""
        return prefix + block

    def _write(self, data: bytes) -> None:
        if data and not self._transport.is_closing():
            self._transport.write(data)

    def _open_window(self) -> None:
        """Let the client send again what it may at most."""
        size = max(self.limits.window_bytes * 4, _DEFAULT_WINDOW)
        self._write(_frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", size - self._receive_window)))
        self._receive_window = size

    # what is received

    def _greet(self, data: bytes) -> int:
        """How much of the data is the client's preface, once that is whole."""
        if not PREFACE.startswith(data[: len(PREFACE)]):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "not an HTTP/2 connection preface")
        self.greeted = len(data) >= len(PREFACE)
        return len(PREFACE)

    def _read_frames(self, data: bytes, at: int) -> bytes:
        end = len(data)
        frames = self._frames
        while end - at >= _FRAME.size:
            high, low, kind, flags, number = _FRAME.unpack_from(data, at)
            length = high << 16 | low
            if length > _FRAME_BYTES:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"a frame of {length} bytes; at most {_FRAME_BYTES}")
            begin = at + _FRAME.size
            if end - begin < length:
                break
            at = begin + length
            if self._block is not None and kind != _CONTINUATION:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a header block was not continued")
            handle = frames.get(kind)
            if handle is None:  # unknown kinds are ignored (section 4.1)
                continue
            try:
                handle(flags, number & _MAX_WINDOW, data[begin:at])
            except StreamFault as fault:
                stream = self.streams.get(number & _MAX_WINDOW)
                if stream is not None:
                    self._application.dropped(stream)
                    self.reset(stream, fault.code)
                else:
                    self._write(_frame(_RST_STREAM, 0, number & _MAX_WINDOW, struct.pack(">I", fault.code)))
        return data[at:]

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < 0:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
        if self._receive_window < self.limits.window_bytes * 2:
            self._open_window()
        stream = self.streams.get(number)
        if stream is None:
            if number == 0 or number > self._last_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"data on stream {number}, which is idle")
            return  # on its way while we ended the stream
        if stream.ended:
            raise StreamFault(ErrorCode.STREAM_CLOSED)
        stream.receive_window -= size
        if stream.receive_window < 0:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR)
        data = _unpadded(payload) if flags & _PADDED else payload
        stream.body += data
        self._held += len(data)
        if flags & _END_STREAM:
            self._end(stream)
            return
        if self._held > self.limits.max_body_bytes:
            raise StreamFault(ErrorCode.ENHANCE_YOUR_CALM)
        if stream.receive_window < self.limits.window_bytes // 2:
            grant = self.limits.window_bytes - stream.receive_window
            stream.receive_window += grant
            self._write(_frame(_WINDOW_UPDATE, 0, number, struct.pack(">I", grant)))
        self._application.received(stream)

    def _end(self, stream: Stream) -> None:
        stream.ended = True
        self._held -= len(stream.body)
        self._application.ended(stream)

    def consume(self, stream: Stream, size: int) -> None:
        del stream.body[:size]
        if not stream.ended:
            self._held -= size

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        if number % 2 == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a request on stream {number}")
        if flags & _PADDED:
            payload = _unpadded(payload)
        if flags & _HAS_PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "headers without their priority")
            payload = payload[5:]
        if flags & _END_HEADERS:
            self._on_block(flags, number, payload)
        else:
            self._block = (number, flags, bytearray(payload), 1)

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a continuation of nothing")
        _, first_flags, block, count = self._block
        block += payload
        if len(block) > 4 * self.limits.max_header_bytes or count > _MAX_CONTINUATIONS:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block that does not end")
        self._block = (number, first_flags, block, count + 1)
        if flags & _END_HEADERS:
            self._block = None
            self._on_block(first_flags, number, bytes(block))

    def _on_block(self, flags: int, number: int, block: bytes) -> None:
        decoded = self._remembered.get(block) or self._decode(block)
        headers = decoded.headers
        stream = self.streams.get(number)
        if stream is not None:  # trailers
            if stream.ended or not flags & _END_STREAM:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"headers in the middle of stream {number}")
            self._end(stream)
            return
        if number <= self._last_id:
            return  # trailers of what we have ended
        self._last_id = number
        if self._goodbye or len(self.streams) >= self.limits.max_streams:
            raise StreamFault(ErrorCode.REFUSED_STREAM)
        if b":method" not in headers or b":path" not in headers or not headers.keys().isdisjoint(_FORBIDDEN):
            raise StreamFault(ErrorCode.PROTOCOL_ERROR)
        stream = self.streams[number] = Stream(self, number, decoded, self._initial_send_window)
        self._application.begun(stream)
        if flags & _END_STREAM and not stream.closed:
            self._end(stream)

    def _decode(self, block: bytes) -> _Block:
        try:
            pairs = self._decoder.decode(block, raw=True)
        except hpack.OversizedHeaderListError as error:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "headers exceed every limit") from error
        except hpack.HPACKError as error:
            raise ConnectionFault(ErrorCode.COMPRESSION_ERROR, str(error)) from error
        headers = {bytes(name): bytes(value) for name, value in pairs}
        decoded = _Block(headers, sum(len(name) + len(value) + 32 for name, value in pairs))
        if min(block, default=0) >= 0x80:
            # nothing but references into the table: the same bytes mean the same as long as the table does not change
            if len(self._remembered) < _MAX_REMEMBERED:
                self._remembered[block] = decoded
        else:
            self._remembered.clear()
        return decoded

    def _on_priority(self, _flags: int, _number: int, _payload: bytes) -> None:
        pass  # deprecated; it may be ignored

    def _on_reset(self, _flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM has 4 bytes")
        if number == 0 or number > self._last_id:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a reset of stream {number}, which is idle")
        self._resets += 1
        if self._resets > _RESETS_FOR_FREE:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "too many streams are begun and reset")
        stream = self.streams.get(number)
        if stream is not None:
            self._application.dropped(stream)
            self._forget(stream)

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number != 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "settings of a stream")
        if len(payload) % 6 or (flags & _ACK and payload):
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "settings of odd length")
        if flags & _ACK:
            return
        for name, value in _SETTING.iter_unpack(payload):
            if name == _INITIAL_WINDOW_SIZE:
                self._resize_windows(value)
            elif name == _MAX_FRAME_SIZE:
                if not _FRAME_BYTES <= value < 2**24:
                    raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a frame size of {value}")
                self._max_send_frame = value
        self._write(_frame(_SETTINGS, _ACK, 0, b""))

    def _resize_windows(self, value: int) -> None:
        if value > _MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"an initial window of {value}")
        change = value - self._initial_send_window
        self._initial_send_window = value
        for stream in list(self.streams.values()):
            stream.send_window += change
            if stream.sending is not None:
                self._send_waiting(stream, stream.sending)

    def _on_push_promise(self, _flags: int, _number: int, _payload: bytes) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "clients promise nothing")

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        if number != 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a ping of a stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a ping has 8 bytes")
        if not flags & _ACK:
            self._write(_frame(_PING, _ACK, 0, payload))

    def _on_goaway(self, _flags: int, number: int, _payload: bytes) -> None:
        if number != 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a goodbye of a stream")
        self._goodbye = True
        self._close_when_done()

    def _on_window_update(self, _flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE has 4 bytes")
        grant = int.from_bytes(payload, "big") & _MAX_WINDOW
        if number == 0:
            self._send_window += grant
            if not grant or self._send_window > _MAX_WINDOW:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "a window out of range")
            for stream in list(self.streams.values()):
                if stream.sending is not None:
                    self._send_waiting(stream, stream.sending)
            return
        stream_ = self.streams.get(number)
        if stream_ is None:
            if number > self._last_id:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a window of stream {number}, which is idle")
            return
        stream_.send_window += grant
        if not grant or stream_.send_window > _MAX_WINDOW:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR)
        if stream_.sending is not None:
            self._send_waiting(stream_, stream_.sending)


def encode_headers(*headers: tuple[bytes, bytes]) -> bytes:
    """A header block of literals that enter no table (RFC 7541, section 6.2.2)."""
    return b"".join(b"\x00" + _string(name) + _string(value) for name, value in headers)


def _string(value: bytes) -> bytes:
    """Length with a prefix of 7 bits (section 5.1), and the bytes without Huffman coding."""
    length = len(value)
    if length < 0x7F:
        return bytes((length,)) + value
    encoded, rest = bytearray(b"\x7f"), length - 0x7F
    while rest >= 0x80:
        encoded.append(rest & 0x7F | 0x80)
        rest >>= 7
    encoded.append(rest)
    return bytes(encoded) + value


def _frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    size = len(payload)
    return _FRAME.pack(size >> 16, size & 0xFFFF, kind, flags, number) + payload


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding that is longer than its frame")
    return payload[1 : len(payload) - payload[0]]
