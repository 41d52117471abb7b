"""The frames of HTTP/2 (RFC 9113) as bytes, and the two kinds of fault: of a stream, of a connection."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import TypeVar

__all__ = [
    "DEFAULT_WINDOW",
    "FRAME",
    "FRAME_BYTES",
    "MAX_WINDOW",
    "PREFACE",
    "ConnectionFault",
    "ErrorCode",
    "Flag",
    "Kind",
    "Setting",
    "StreamFault",
    "frame",
    "goaway",
    "reset",
    "settings",
    "settings_of",
    "unpadded",
    "window_update",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME = struct.Struct(">BHBBI")
"""Length (8 and 16 bits), kind, flags, stream."""
FRAME_BYTES = 16_384
"""Longest frame that we accept: the protocol's least, and enough, since many are read at once."""
DEFAULT_WINDOW = 65_535
MAX_WINDOW = 2**31 - 1
BytesT = TypeVar("BytesT", bytes, memoryview)
_SETTING = struct.Struct(">HI")
_MAX_GOODBYE = 200
"""Bytes of the text in GOAWAY."""


class Kind:
    """Section 6. Bare numbers, not an enum: they are compared for every frame."""

    DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)


class Flag:
    ACK = END_STREAM = 0x1
    END_HEADERS = 0x4
    PADDED = 0x8
    PRIORITY = 0x20


class Setting:
    """Section 6.5.2."""

    (
        HEADER_TABLE_SIZE,
        ENABLE_PUSH,
        MAX_CONCURRENT_STREAMS,
        INITIAL_WINDOW_SIZE,
        MAX_FRAME_SIZE,
        MAX_HEADER_LIST_SIZE,
    ) = range(1, 7)


class ErrorCode(IntEnum):
    """Section 7."""

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


def frame(kind: int, flags: int, number: int, payload: bytes) -> bytes:
    """One frame, of a payload that the peer takes in one piece."""
    size = len(payload)
    return FRAME.pack(size >> 16, size & 0xFFFF, kind, flags, number) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(Kind.SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in pairs))


def settings_of(payload: bytes) -> dict[int, int]:
    """Section 6.5; of a setting that is named twice, the last. Raises `ConnectionFault`."""
    if len(payload) % _SETTING.size:
        raise ConnectionFault(ErrorCode.FRAME_SIZE_ERROR, f"settings of {len(payload)} bytes")
    given = {}
    for name, value in _SETTING.iter_unpack(payload):  # each must be right, even one that the next replaces
        if name == Setting.ENABLE_PUSH and value > 1:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"ENABLE_PUSH is 0 or 1, not {value}")
        if name == Setting.INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
            raise ConnectionFault(ErrorCode.FLOW_CONTROL_ERROR, f"an initial window of {value}")
        if name == Setting.MAX_FRAME_SIZE and not FRAME_BYTES <= value < 2**24:
            raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, f"a frame size of {value}")
        given[name] = value
    return given


def reset(number: int, code: ErrorCode) -> bytes:
    return frame(Kind.RST_STREAM, 0, number, struct.pack(">I", code))


def window_update(number: int, grant: int) -> bytes:
    return frame(Kind.WINDOW_UPDATE, 0, number, struct.pack(">I", grant))


def goaway(last: int, code: ErrorCode, text: str = "") -> bytes:
    return frame(Kind.GOAWAY, 0, 0, struct.pack(">II", last, code) + text.encode()[:_MAX_GOODBYE])


def unpadded(payload: BytesT) -> BytesT:
    """Section 6.1. Raises `ConnectionFault`."""
    if not payload or payload[0] >= len(payload):
        raise ConnectionFault(ErrorCode.PROTOCOL_ERROR, "padding that is longer than its frame")
    return payload[1 : len(payload) - payload[0]]
