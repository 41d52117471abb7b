"""From bytes to frames (RFC 9113, section 4): where they end, how long they may be, and which may come next."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import NamedTuple, Protocol

from gateway.grpc.frames import (
    FRAME,
    FRAME_BYTES,
    MAX_WINDOW,
    PREFACE,
    ConnectionFault,
    ErrorCode,
    Flag,
    Kind,
    StreamFault,
)
from gateway.grpc.streams import Limits, Stream

__all__ = ["FrameReader", "Handler", "Receiver"]

Handler = Callable[[int, int, bytes], None]
"""Takes flags, stream and payload of one frame. Raises `ConnectionFault` or `StreamFault`."""

_DATA = Kind.DATA
_ONLY = {Kind.SETTINGS: "settings come first", Kind.CONTINUATION: "a header block was not continued"}


class Receiver(Protocol):
    """Who gets what was read. All but `refuse` raise `ConnectionFault` or `StreamFault`."""

    def on_data(self, flags: int, number: int, payload: memoryview) -> None:
        """A frame of data that is whole."""

    def on_data_begun(self, number: int, length: int, padding: int) -> Stream | None:
        """One that is not: returns its stream if that is open; `padding` is what of `length` is no data."""

    def on_data_part(self, stream: Stream, part: memoryview) -> None:
        """The next of its data."""

    def on_data_ended(self, stream: Stream, flags: int) -> None:
        """It is complete."""

    def refuse(self, number: int, code: ErrorCode) -> None:
        """A stream broke a rule."""


class _Part(NamedTuple):
    """A frame whose payload is passed on, or over, as it comes: so the longest need no place of their own."""

    stream: Stream | None
    """Who gets it; None: nobody."""
    flags: int
    missing: int
    """Bytes of data that are still to come."""
    padding: int
    """Bytes that then are passed over."""


class FrameReader:
    """Reads what comes on one connection."""

    def __init__(self, receiver: Receiver, limits: Limits, now: float) -> None:
        self.handlers: dict[int, Handler] = {}
        """By kind, of all frames but data; unknown ones are ignored (section 4.1)."""
        self.greeted = False
        """The client has shown that it speaks HTTP/2."""
        self.only: int | None = Kind.SETTINGS
        """The one kind of frame that may come next, where there is but one."""
        self.since = now
        """Monotonic second since which a greeting, a header block or a frame waits to be completed; else infinite."""
        self._receiver = receiver
        self._max_frame = limits.max_frame_bytes
        self._max_kept = max(FRAME_BYTES, limits.max_block_bytes)
        self._rest = b""
        self._part: _Part | None = None

    def read(self, data: memoryview, now: float) -> None:
        """Raises `ConnectionFault`; what follows that is not to be read. Nothing of the data is kept but by copy."""
        if self._rest:
            data = memoryview(self._rest + data)
            self._rest = b""
        at = 0 if self.greeted else self._greet(data)
        if self.greeted:
            at = self._read_frames(data, at)
        if at < len(data):
            self._rest = bytes(data[at:])
            if at and self.only is None:
                self.since = now
        elif self.only is None:
            self.since = inf
            return
        self.since = min(self.since, now)

    def done(self) -> None:
        """What alone could come next has come."""
        self.only = None
        self.since = inf

    def _greet(self, data: memoryview) -> int:
        """How much of the data is the client's preface, once that is whole."""
        if not PREFACE.startswith(bytes(data[: len(PREFACE)])):
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "not an HTTP/2 connection preface")
        self.greeted = len(data) >= len(PREFACE)
        return len(PREFACE) if self.greeted else 0

    def _read_frames(self, data: memoryview, at: int) -> int:
        """Returns where what could not be read yet begins."""
        end = len(data)
        if self._part is not None:
            at = self._go_on(self._part, data, at)
        on_data, header_size, max_kept = self._receiver.on_data, FRAME.size, self._max_kept
        while end - at >= header_size:
            high, low, kind, flags, number = FRAME.unpack_from(data, at)
            length = high << 16 | low
            if length > max_kept:
                self._check_long(kind, length)
            if self.only is not None and kind != self.only:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, _ONLY[self.only])
            begin = at + header_size
            number &= MAX_WINDOW
            try:
                if end - begin < length:
                    beyond = self._begin_part(kind, flags, number, length, data, begin)
                    return at if beyond is None else beyond
                at = begin + length
                if kind == _DATA:
                    on_data(flags, number, data[begin:at])
                elif kind in self.handlers:
                    self.handlers[kind](flags, number, bytes(data[begin:at]))
            except StreamFault as fault:
                self._receiver.refuse(number, fault.code)
        return at

    def _check_long(self, kind: int, length: int) -> None:
        """Of data, and of what nobody knows, nothing is kept here; of the rest, so much as headers may be long."""
        if length > self._max_frame:
            text = f"a frame of {length} bytes; at most {self._max_frame}"
            raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, text)
        if kind in self.handlers:
            raise ConnectionFault(ErrorCode.ENHANCE_YOUR_CALM, f"{length} bytes of other things than data")

    def _begin_part(self, kind: int, flags: int, number: int, length: int, data: memoryview, begin: int) -> int | None:
        """Take what is there of a frame's payload; None: it is kept until the rest has come."""
        if kind in self.handlers:
            return None
        if kind != _DATA:
            return self._go_on(_Part(None, 0, length, 0), data, begin)
        padding, extra = 0, 0
        if flags & Flag.PADDED:
            if begin == len(data):
                return None
            padding = data[begin]
            begin, extra = begin + 1, padding + 1
            if padding >= length:
                raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding that is longer than its frame")
        try:
            stream = self._receiver.on_data_begun(number, length, extra)
        except StreamFault as fault:  # the rest of the frame comes all the same
            self._receiver.refuse(number, fault.code)
            stream = None
        return self._go_on(_Part(stream, flags, length - extra, padding), data, begin)

    def _go_on(self, part: _Part, data: memoryview, at: int) -> int:
        """Take the next of a frame that is passed on as it comes."""
        stream, flags, missing, padding = part
        there = len(data) - at
        size = min(missing, there)
        if stream is not None and size:
            self._receiver.on_data_part(stream, data[at : at + size])
        if there < missing + padding:
            self._part = _Part(stream, flags, missing - size, padding - (there - size))
            return len(data)
        self._part = None
        if stream is not None:
            self._receiver.on_data_ended(stream, flags)
        return at + missing + padding
