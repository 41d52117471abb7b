"""HTTP/2 on the server's side (RFC 9113), as much of it as gRPC needs, close to the socket.

What it reads may be anything: whatever breaks the rules ends a stream or the connection, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from math import inf
from typing import Protocol, cast

from gateway.busy_poll import BusyPoll
from gateway.grpc.frames import (
    DEFAULT_WINDOW,
    MAX_WINDOW,
    ConnectionFault,
    ErrorCode,
    Flag,
    Kind,
    Setting,
    StreamFault,
    frame,
    goaway,
    reset,
    settings,
    settings_of,
    unpadded,
    window_update,
)
from gateway.grpc.headers import Block, BlockReader
from gateway.grpc.reading import FrameReader
from gateway.grpc.streams import Limits, Outgoing, Room, Stream

__all__ = ["Application", "Http2Connection", "Limits", "Stream"]

_log = logging.getLogger("penstock.grpc")

# taken from their classes once, not for every frame
_END_STREAM, _END_HEADERS, _PADDED = Flag.END_STREAM, Flag.END_HEADERS, Flag.PADDED
_MAX_CONTINUATIONS = 16
_UNREST_FOR_FREE = 200
"""Resets, settings and pings beyond one reset for each stream that may be open."""
_FORGIVEN_PER_S = 100.0


class Application(Protocol):
    """Who answers the streams of a connection."""

    def opened(self, connection: Http2Connection) -> None: ...

    def lost(self, connection: Http2Connection) -> None: ...

    def begun(self, stream: Stream) -> None:
        """Headers are there."""

    def received(self, stream: Stream) -> None:
        """`stream.body` is as long as was expected, or padding took some of its window: call `stream.expect` again."""

    def ended(self, stream: Stream) -> None:
        """The client has sent everything."""

    def dropped(self, stream: Stream) -> None:
        """Nobody waits for the rest of the answer any more."""


class Http2Connection(asyncio.BufferedProtocol):
    """One connection.

    Args:
        application: who answers.
        limits: what it may take up.
        buffer: where the socket's bytes are read to. All connections of an event loop may have the same: nothing stays
            there. A buffer of its own for each read, that `asyncio.Protocol` gets, costs a long request a fifth more.
        poll: told of what comes and goes.
    """

    def __init__(
        self, application: Application, limits: Limits, buffer: bytearray, poll: BusyPoll | None = None
    ) -> None:
        self.limits = limits
        self._poll = poll
        self.streams: dict[int, Stream] = {}
        self.last_activity = time.monotonic()
        self.retires = inf
        """Monotonic second after which it takes no more calls."""
        self.outgoing = Outgoing(self._write, self._finish)
        self.room = Room(limits, self._write, self.streams)
        self._application = application
        self._buffer, self._received = buffer, memoryview(buffer).toreadonly()
        self._reader = FrameReader(self, limits, self.last_activity)
        self._blocks = BlockReader(limits.max_block_bytes)
        self._remembered = self._blocks.remembered
        self._last_id = 0
        self._block: tuple[int, int, bytearray, int] | None = None
        """A header block that goes on: stream, flags, bytes, frames."""
        self._receive_window = DEFAULT_WINDOW
        self._low_window = limits.connection_window_bytes // 2
        self._unrest = 0.0
        self._unrest_at = 0.0
        self._busy_at, self._busy_id = self.last_activity, 0
        self._goodbye = False
        self._lingering = False
        self._hasty = False
        self._stalled_since: float | None = None
        self._reader.handlers = {
            Kind.HEADERS: self._on_headers,
            Kind.PRIORITY: self._on_priority,
            Kind.RST_STREAM: self._on_reset,
            Kind.SETTINGS: self._on_settings,
            Kind.PUSH_PROMISE: self._on_push_promise,
            Kind.PING: self._on_ping,
            Kind.GOAWAY: self._on_goaway,
            Kind.WINDOW_UPDATE: self._on_window_update,
            Kind.CONTINUATION: self._on_continuation,
        }

    # the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._application.opened(self)
        limits = self.limits
        ours = settings(
            (Setting.MAX_CONCURRENT_STREAMS, limits.max_streams),
            (Setting.INITIAL_WINDOW_SIZE, limits.window_bytes),
            (Setting.MAX_FRAME_SIZE, limits.max_frame_bytes),
            (Setting.MAX_HEADER_LIST_SIZE, limits.max_header_bytes),
        )
        self._write(ours + self._opened_window())

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.last_activity = time.monotonic()
        if self._poll is not None:
            self._poll.heard(self)
        if self._goodbye and not self.streams:
            return
        try:
            self._reader.read(self._received[:nbytes], self.last_activity)
            self.outgoing.flush()
        except ConnectionFault as fault:
            self.close(fault.code, str(fault))
        except Exception:  # noqa: BLE001  a fault of ours ends this connection, and no other
            _log.exception("a connection failed")
            self.close(ErrorCode.INTERNAL_ERROR)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self._goodbye = True
        self._application.lost(self)
        self._drop_all()

    def pause_writing(self) -> None:
        """The client does not take its answers: take no more of its requests."""
        if not self._transport.is_closing():
            self._stalled_since = time.monotonic()
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        if not self._transport.is_closing():
            self._stalled_since = None
            self._transport.resume_reading()

    @property
    def unfinished_since(self) -> float:
        """Monotonic second since which a greeting, a header block or a frame waits to be completed; else infinite."""
        return self._reader.since

    @property
    def ending(self) -> bool:
        """Its last words are said."""
        return self._lingering or self._transport.is_closing()

    def last_busy(self, now: float) -> float:
        """When it last had a call, as far as that shows to whoever asks now and then; it costs the calls nothing."""
        if self.streams or self._last_id != self._busy_id:
            self._busy_at, self._busy_id = now, self._last_id
        return self._busy_at

    def stalled(self, since: float) -> bool:
        """The client has taken nothing of its answers since that monotonic second, on its socket or by its windows."""
        on_socket, by_windows = self._stalled_since, self.outgoing.waiting_since
        return (on_socket is not None and on_socket < since) or (by_windows is not None and by_windows < since)

    # the end

    def go_away(self) -> None:
        """Take no new streams; those at work may finish."""
        if not self._goodbye:
            self._goodbye = True
            self._write(goaway(self._last_id, ErrorCode.NO_ERROR))
        self._close_when_done()

    def close(self, code: ErrorCode = ErrorCode.NO_ERROR, text: str = "") -> None:
        """End the connection and tell the peer why."""
        if self._transport.is_closing():
            return
        self._goodbye = True
        self._write(goaway(self._last_id, code, text))
        self._drop_all()
        if code is ErrorCode.NO_ERROR:
            self._end_transport()
        else:
            self._close_when_done()

    def abort(self) -> None:
        """End the connection without another word."""
        self._transport.abort()

    def _drop_all(self) -> None:
        streams = list(self.streams.values())
        self.streams.clear()
        self.room.held_back.clear()
        for stream in streams:
            self._application.dropped(stream)
            self._leave(stream)

    def _finish(self, stream: Stream) -> None:
        """The answer is written to its end."""
        if not stream.ended:  # what is still on its way is of no use to anybody (section 8.1)
            self._write(reset(stream.id, ErrorCode.NO_ERROR))
        elif self._unrest:
            self._unrest = max(self._unrest - 1, 0)
        self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        self.streams.pop(stream.id, None)
        self._leave(stream)
        if self._goodbye:
            self._close_when_done()

    def _leave(self, stream: Stream) -> None:
        stream.closed = True
        if stream.waiting is not None:
            self.outgoing.forget(stream)
        if stream.granted or self.room.held_back:
            self.room.give_back(stream)

    def _close_when_done(self) -> None:
        if not self.streams and not self._lingering:
            # not at once: closing on what the client has just sent would reset the connection under our last words
            self._lingering = True
            asyncio.get_running_loop().call_later(self.limits.linger_s, self._end_transport)

    def _end_transport(self) -> None:
        if self._stalled_since is None:  # from now on: what the client does not take keeps a closed transport alive
            self._stalled_since = time.monotonic()
        self._transport.close()

    def _write(self, data: bytes) -> None:
        if data and not self._transport.is_closing():
            poll = self._poll
            if poll is None:
                self._transport.write(data)
                return
            lone = poll.lone()
            if lone is not self._hasty:
                # an answer to a lone client goes out when it is written, those of many in one call at the turn's end
                self._hasty = lone
                self._transport.set_write_buffer_limits(high=0 if lone else None)
            self._transport.write(data)
            poll.spoke()

    def _opened_window(self) -> bytes:
        """Let the client send again what it may at most."""
        size = self.limits.connection_window_bytes
        grant, self._receive_window = size - self._receive_window, size
        return window_update(0, grant) if grant else b""

    # what is received

    def refuse(self, number: int, code: ErrorCode) -> None:
        """See `gateway.grpc.reading.Receiver`, as for all that is on data."""
        if code is not ErrorCode.REFUSED_STREAM:
            self._disturb()
        stream = self.streams.get(number)
        if stream is not None:
            self._application.dropped(stream)
            self._forget(stream)
        self._write(reset(number, code))

    def _disturb(self, text: str = "too many streams are begun and reset") -> None:
        """Count what lets a client begin more than it lets us finish, whoever resets (CVE-2023-44487, CVE-2025-8671).

        As many resets as there may be streams are nothing bad: one time-out of many calls.
        """
        now = self.last_activity
        self._unrest = max(self._unrest - (now - self._unrest_at) * _FORGIVEN_PER_S, 0) + 1
        self._unrest_at = now
        if self._unrest > self.limits.max_streams + _UNREST_FOR_FREE:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, text)

    def _check_begun(self, number: int) -> None:
        """A stream that is not at work any more may be spoken of; one that never was may not."""
        if number > self._last_id or number % 2 == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a frame of stream {number}, which is idle")

    def on_data(self, flags: int, number: int, payload: memoryview) -> None:
        size = len(payload)
        stream = self._receiving(number, size)
        if stream is None:
            return
        stream.receive_window -= size
        body = stream.body
        body += unpadded(payload) if flags & _PADDED else payload
        if flags & _END_STREAM:
            self._end(stream)
            return
        stream.heard = self.last_activity
        if len(body) >= stream.wanted or flags & _PADDED:
            self._application.received(stream)

    def on_data_begun(self, number: int, length: int, padding: int) -> Stream | None:
        stream = self._receiving(number, length)
        if stream is not None:
            stream.receive_window -= padding
        return stream

    def on_data_part(self, stream: Stream, part: memoryview) -> None:
        if stream.closed:
            return
        stream.receive_window -= len(part)
        stream.body += part
        stream.heard = self.last_activity
        if len(stream.body) >= stream.wanted:
            self._application.received(stream)

    def on_data_ended(self, stream: Stream, flags: int) -> None:
        if stream.closed:
            return
        if flags & _END_STREAM:
            self._end(stream)
        elif flags & _PADDED:
            self._application.received(stream)

    def _receiving(self, number: int, size: int) -> Stream | None:
        """Flow control of a frame of data: whose it is, None if that has ended."""
        self._receive_window -= size
        if self._receive_window < self._low_window:
            if self._receive_window < 0:
                raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
            self._write(self._opened_window())
        stream = self.streams.get(number)
        if stream is None:
            self._check_begun(number)  # on its way while we ended the stream
            return None
        if stream.ended:
            raise StreamFault(ErrorCode.STREAM_CLOSED)
        if size > stream.receive_window:
            raise StreamFault(ErrorCode.FLOW_CONTROL_ERROR)
        return stream

    def _end(self, stream: Stream) -> None:
        stream.ended = True
        if stream.granted or self.room.held_back:
            self.room.give_back(stream)
        self._application.ended(stream)

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        if number % 2 == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a request on stream {number}")
        if flags & Flag.PADDED:
            payload = unpadded(payload)
        if flags & Flag.PRIORITY:
            if len(payload) < 5:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "headers without their priority")
            payload = payload[5:]
        if flags & _END_HEADERS:
            self._on_block(flags, number, payload)
        else:
            self._block = (number, flags, bytearray(payload), 1)
            self._reader.only = Kind.CONTINUATION

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if self._block is None or self._block[0] != number:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a continuation of nothing")
        _, first_flags, block, count = self._block
        block += payload
        if len(block) > self.limits.max_block_bytes or count > _MAX_CONTINUATIONS:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, "a header block that does not end")
        self._block = (number, first_flags, block, count + 1)
        if flags & _END_HEADERS:
            self._block = None
            self._reader.done()
            self._on_block(first_flags, number, bytes(block))

    def _on_block(self, flags: int, number: int, block: bytes) -> None:
        decoded = self._remembered.get(block) or self._blocks.decode(block)
        if number <= self._last_id:
            self._on_trailers(flags, number, decoded)
            return
        self._last_id = number
        limits = self.limits
        if self._goodbye or len(self.streams) >= limits.max_streams or self.outgoing.unsent > limits.max_body_bytes:
            raise StreamFault(ErrorCode.REFUSED_STREAM)
        if not decoded.begins:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR)
        ended = bool(flags & _END_STREAM)
        stream = self.streams[number] = Stream(self, number, decoded, ended=ended)
        self._application.begun(stream)
        if ended and not stream.closed:
            self._application.ended(stream)

    def _on_trailers(self, flags: int, number: int, decoded: Block) -> None:
        stream = self.streams.get(number)
        if stream is None:
            if decoded.begins:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"stream {number} was there before")
            return  # of what we have ended
        if stream.ended:
            raise StreamFault(ErrorCode.STREAM_CLOSED)
        if not flags & _END_STREAM or not decoded.ends:
            raise StreamFault(ErrorCode.PROTOCOL_ERROR)
        self._end(stream)

    def _on_priority(self, _flags: int, number: int, payload: bytes) -> None:
        """Deprecated; what it says may be ignored."""
        if number == 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a priority of the connection")
        if len(payload) != 5:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a priority has 5 bytes")

    def _on_reset(self, _flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM has 4 bytes")
        self._check_begun(number)
        stream = self.streams.get(number)
        if stream is not None:
            self._application.dropped(stream)
            self._forget(stream)
        self._disturb()

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number != 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "settings of a stream")
        if flags & Flag.ACK:
            if self._reader.only is not None:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "settings come first")
            if payload:
                raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "an acknowledgement of settings has no bytes")
            return
        if self._reader.only is not None:
            self._reader.done()
        self._disturb("too many settings")  # each concerns all streams
        given = settings_of(payload)
        outgoing = self.outgoing
        outgoing.max_frame = given.get(Setting.MAX_FRAME_SIZE, outgoing.max_frame)
        if Setting.INITIAL_WINDOW_SIZE in given:
            outgoing.set_initial_window(given[Setting.INITIAL_WINDOW_SIZE], self.streams.values())
        self._write(frame(Kind.SETTINGS, Flag.ACK, 0, b""))

    def _on_push_promise(self, _flags: int, _number: int, _payload: bytes) -> None:
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "clients promise nothing")

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        if number != 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a ping of a stream")
        if len(payload) != 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a ping has 8 bytes")
        if not flags & Flag.ACK:
            if not self.outgoing.spoke:  # clients measure their line by a ping for what they get: gRPC lets them
                self._disturb("too_many_pings")  # the word by which they know to ask less often
            self.outgoing.spoke = False
            self._write(frame(Kind.PING, Flag.ACK, 0, payload))

    def _on_goaway(self, _flags: int, number: int, payload: bytes) -> None:
        if number != 0:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "a goodbye of a stream")
        if len(payload) < 8:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "a goodbye has 8 bytes or more")
        self._goodbye = True
        self._close_when_done()

    def _on_window_update(self, _flags: int, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE has 4 bytes")
        grant = int.from_bytes(payload, "big") & MAX_WINDOW
        if number == 0:
            self.outgoing.widen(grant)
            return
        stream = self.streams.get(number)
        if stream is not None:
            self.outgoing.widen_stream(stream, grant)
        else:
            self._check_begun(number)
